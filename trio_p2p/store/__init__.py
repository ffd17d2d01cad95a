"""The LMDB store: keys and records, functions of a transaction, the engine, and the facade.

`schema`, `keys` and `records` say what stands in the file; `environment` opens it, with
`migrations`, `identity` and `deferred`. `documents`, `changes`, `conflicts`, `remotes`,
`checkpoints`, `expirations`, `purging` and `catalogue` are synchronous functions of a
`transaction`. `engine` runs the one writer: `jobs` wait for its `committer`, and a `janitor` and a
`syncer` work beside it. `database` and `collection` are what users hold.
"""
