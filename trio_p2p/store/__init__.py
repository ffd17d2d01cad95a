"""The LMDB store: keys and records, functions of a transaction, the engine, and the facade.

`schema`, `keys` and `records` say what stands in the file; `environment` opens it; `engine` runs
the one writer. `documents`, `changes`, `conflicts`, `remotes` and `checkpoints` are synchronous
functions of a `transaction`. `database` is what users hold.
"""
