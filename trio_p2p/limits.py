"""Every cap, timeout and batch size, with its unit in the name and its reason beside it."""

from __future__ import annotations

from typing import Final

MIB: Final = 2**20

# --- Documents -----------------------------------------------------------------------------------

# LMDB keys hold at most 511 bytes; 240 is also what Couchbase Lite accepts as a document ID.
DOCUMENT_ID_BYTES_MAX: Final = 240
# Sync Gateway's own cap on one document, so that what we accept can be relayed.
BODY_BYTES_MAX: Final = 20 * MIB
# Far more than replicates in sensible time; a peer cannot send more than its document announces.
BLOB_BYTES_MAX: Final = 2**40
# Values in one body: far more than a real document of that size has, and as many as are read in a
# second or so.
BODY_VALUES_MAX: Final = 1_000_000
# Blobs that one body names: each is looked for on the disk before the body is stored, which takes
# some microseconds, and while that is done nothing else is.
BODY_BLOBS_MAX: Final = 5_000
# Deep enough for any real document; far below what would exhaust the interpreter's stack.
BODY_DEPTH_MAX: Final = 100
# Of the names of databases in URLs. Source: Couchbase Lite's listener.
URL_NAME_BYTES_MAX: Final = 240
# Couchbase Lite's limit on scope and collection names.
COLLECTION_NAME_BYTES_MAX: Final = 251
# Versions one vector may hold: a hostile peer can invent sources, and a vector travels with every
# revision. Far more authors of one document than a fleet has.
VECTOR_VERSIONS_MAX: Final = 1_000
# Tree revision IDs kept beside a vector; Couchbase Lite 3 sends at most 50 ancestors.
TREE_REVISIONS_MAX: Final = 100

# --- Deltas --------------------------------------------------------------------------------------

# Shorter bodies are sent whole. Source: LiteCore's ReplicatorTuning.hh.
DELTA_BODY_BYTES_MIN: Final = 200
# Shorter texts are replaced whole. Source: Fleece's JSONDelta.cc.
DELTA_TEXT_BYTES_MIN: Final = 60
# Pairs of letters in one comparison of two texts: some 10 ms, and the interpreter waits for it.
DELTA_CELLS_MAX: Final = 2**26
# Up to this size together, two bodies are compared in the Trio thread, where it takes no more than
# some milliseconds; larger ones in another.
DELTA_BYTES_IN_PLACE_MAX: Final = 32 * 1024
# Work that goes into the texts of one delta: a few tenths of a second. A step is 64 pairs of
# letters compared, or 8 letters searched.
DELTA_STEPS_MAX: Final = 2**24
# Bodies made from deltas and not stored yet: beyond it, further deltas wait. A few bytes may stand
# for the largest of bodies, so the message's own size bounds nothing.
DELTA_BODIES_BYTES_MAX: Final = 4 * MIB
# Edits of texts in one delta: carried out in some tenths of a second.
DELTA_EDITS_MAX: Final = 100_000

# --- Clock ---------------------------------------------------------------------------------------

# Couchbase Lite refuses versions further ahead than this, so ours must never be.
CLOCK_SKEW_NS_MAX: Final = 120 * 10**9

# --- Store ---------------------------------------------------------------------------------------

# Address space reserved for one database; the file is sparse and grows as documents come.
MAP_SIZE_BYTES_DEFAULT: Final = 64 * 2**30
# What is mapped beyond a size limit, so that deleting and checkpoints still work when it is
# reached: a share of the limit, and room for a few of the largest bodies with their copies.
MAP_RESERVE_SHARE: Final = 16
MAP_RESERVE_BYTES_MIN: Final = 64 * MIB
# By how much a record may let the tables grow beyond its own size: a page left half empty at each
# level of two trees, generously.
RECORD_GROWTH_BYTES_MAX: Final = 128 * 1024
# Jobs that one commit carries at most: bounds how long a writer waits behind others.
COMMIT_JOBS_MAX: Final = 256
# Jobs that may wait for the writer before callers are held back.
WRITER_QUEUE_JOBS_MAX: Final = 1024
# Records that one transaction of the janitor removes (some milliseconds), and how long it may sleep
# at most, since the wall clock may jump.
TIDY_RECORDS: Final = 500
TIDY_INTERVAL_S: Final = 60.0
# After a power cut a larger file is not walked at the next opening: this takes some 5 s.
CHECKED_FILE_BYTES_MAX: Final = 2**30
# What a power cut may take with it where commits do not wait for the disk.
SYNC_INTERVAL_S: Final = 1.0
# How long a blob that no document ever named is kept: for a program that saves it in one run and
# names it in the next.
BLOB_UNNAMED_S: Final = 3600
# A call in a thread costs some 100 microseconds, as much as reading or hashing a part of this size.
BLOB_PART_BYTES: Final = 256 * 1024
# Documents or changes read in one snapshot before other tasks get a turn (about a millisecond).
SCAN_SLICE_ROWS: Final = 200
# Records read in one snapshot: a slice of large documents ends earlier. Reading so much takes far
# less than a millisecond, but decoding it, which the reader does before the next slice, takes two.
SCAN_SLICE_BYTES: Final = 64 * 1024

# --- BLIP ----------------------------------------------------------------------------------------

# Frame sizes include header and checksum. Source: BLIP 3, LiteCore's BLIPConnection.
FRAME_BYTES_MAX: Final = 16_384
FRAME_BYTES_WHEN_URGENT_WAITS: Final = 4_096
# Acknowledge a message each time this much more of it has arrived; stop sending one when this
# much of it is not acknowledged. Source: LiteCore's Message.cc and MessageOut.hh.
ACK_INTERVAL_BYTES: Final = 50_000
UNACKNOWLEDGED_BYTES_MAX: Final = 128_000
# LiteCore's limit on the properties of one message.
PROPERTIES_BYTES_MAX: Final = 100 * 1024
# Each takes some hundred bytes once it is read, however short. Couchbase Lite sends ten at most.
PROPERTIES_MAX: Final = 200
# One message: a document and its properties, with room.
MESSAGE_BYTES_MAX: Final = BODY_BYTES_MAX + MIB
# Messages of one peer that may be incomplete at once: a full window of revisions, each begun with
# the small frame that is used when urgent messages wait, and others beside them.
INCOMPLETE_MESSAGES_MAX: Final = 1_024
# All incomplete messages of one peer together.
INCOMPLETE_BYTES_MAX: Final = 64 * MIB
# Requests of a peer that await our reply: a window of revisions in some collections, and others.
REQUESTS_UNANSWERED_MAX: Final = 20_000
# What one peer may make us hold: messages that are incomplete or not dealt with, and replies that
# it does not take. Several of the largest documents; what else a peer sends it sends in a window
# of 2 MiB. And all peers of a listener together.
CONNECTION_BYTES_MAX: Final = 128 * MIB
LISTENER_BYTES_MAX: Final = 512 * MIB
# What a request takes beside its body, if its properties are short, and each row of one that lists
# something, once it is read.
REQUEST_BYTES: Final = 1_024
ROW_BYTES: Final = 1_024
# A message that waits to be sent takes so much beside its data, be it a reply of a single byte.
OUTGOING_BYTES: Final = 512
# Of what a peer says to people: more than any explanation needs, and each of thousands of events
# may hold one.
HEARSAY_CHARACTERS_MAX: Final = 500
# How long a peer that owes us something may say nothing: a reply, an acknowledgement, a revision
# that it promised. Longer than any of that takes, but not for ever. Peers that are gone are noticed
# earlier, by their pongs.
SILENCE_TIMEOUT_S: Final = 300.0
# How long one write may take: with 64 KiB, over a serial line of 9,600 baud, 70 s.
WRITE_TIMEOUT_S: Final = 120.0
# What a request takes that is answered by a task of its own.
TASK_BYTES: Final = 16 * 1024
# A message of which no more comes, though others do or nothing at all.
MESSAGE_STALL_S: Final = 120.0
# JSON deflates to a tenth or so. What inflates to more than a hundred times its size is inflated at
# once up to a few of the largest messages, then at a rate that leaves the machine to others.
INFLATION_RATIO: Final = 100
INFLATION_BYTES_MAX: Final = 64 * MIB
INFLATION_BYTES_PER_S: Final = 8 * MIB
# Reading the body of a message this large takes milliseconds, and so does writing one: that is done
# in a thread.
READ_ASIDE_BYTES: Final = 64 * 1024
# LiteCore refuses WebSocket messages larger than this.
TRANSPORT_MESSAGE_BYTES_MAX: Final = MIB
# Reads of 256 KiB move 64 KiB messages at twice the speed of trio-websocket's own 4 KiB.
TRANSPORT_READ_BYTES: Final = 256 * 1024
# Messages received and not yet taken. A few keep the reader busy; each may be of the largest size.
TRANSPORT_QUEUE_MESSAGES_MAX: Final = 4
# Frames gathered into one write: each write costs a system call and a TLS record or more.
TRANSPORT_WRITE_BYTES: Final = 64 * 1024

# A message may come in this many pieces (frames, or what of one arrives by itself): as many as 1
# MiB makes in packets of 128 bytes.
MESSAGE_PIECES_MAX: Final = 8_192
# How long the rest of a message may be waited for, and a write of some 64 KiB may take: 1 MiB at
# 9 KiB a second, less than any link on which syncing makes sense.
MESSAGE_TIMEOUT_S: Final = 120.0
SEND_TIMEOUT_S: Final = 120.0

# --- Connections ---------------------------------------------------------------------------------

# LiteCore's WebSocketImpl: 15 s to connect, 5 s for the goodbye to be echoed.
CONNECT_TIMEOUT_S: Final = 15.0
HANDSHAKE_TIMEOUT_S: Final = 15.0
# What a peer may send in a TLS handshake; OpenSSL takes 100 KiB of certificates, and such a hello.
TLS_HANDSHAKE_BYTES_MAX: Final = 256 * 1024
# Answers that OpenSSL has ready for a peer that asks for new keys (27 bytes each), while we send
# nothing. Peers that mean well ask once in some gigabytes.
TLS_ANSWER_BYTES_MAX: Final = 16 * 1024
# How long, and for how many bytes, a connection is kept after an alert, for the peer to read it.
LINGER_S: Final = 1.0
LINGER_BYTES_MAX: Final = 64 * 1024
# The request of a client with all its headers: what web servers allow, and h11's own limit.
REQUEST_HEAD_BYTES_MAX: Final = 16 * 1024
# What a server may answer to a handshake: any explanation, and the first messages behind a yes.
HANDSHAKE_BYTES_MAX: Final = MIB
CLOSE_TIMEOUT_S: Final = 5.0
HEARTBEAT_S: Final = 300.0
PONG_TIMEOUT_S: Final = 20.0
# A port that the system chose for IPv4 may be taken for IPv6: then it is asked for another one.
LISTEN_ATTEMPTS_MAX: Final = 10
LISTENER_CONNECTIONS_MAX: Final = 1_000
# Connections accepted at once, before other tasks have their turn: some milliseconds' worth.
ACCEPT_AT_ONCE_MAX: Final = 64
# How long to wait for files when the system has no more of them.
ACCEPT_PAUSE_S: Final = 0.1
# Connections that are not let in yet: some hundred handshakes at once are more than a machine works
# off in the time one takes, and each may hold a few hundred KiB.
LISTENER_WAITING_MAX: Final = 256
# A client that was let in asks for its collections at once; this is for slow links.
FIRST_REQUEST_TIMEOUT_S: Final = 30.0
# A function of the user's that decides on a client: less than what its whole handshake may take.
AUTHENTICATOR_TIMEOUT_S: Final = 10.0
# Wrong passwords: the next attempt from the same address waits 0.1 s, 0.2 s, 0.4 s and so on, as
# long as the last one is not a minute ago.
LOGIN_WAIT_S: Final = 0.1
LOGIN_WAIT_S_MAX: Final = 2.0
LOGIN_MEMORY_S: Final = 60.0
# Addresses whose failed attempts are remembered; a hostile network has any number.
LOGIN_ADDRESSES_MAX: Final = 10_000
# Argon2id as OWASP's Password Storage Cheat Sheet has it for machines with little memory: some
# 20 ms a password. Two at a time leave the other cores to the rest of the program.
ARGON2_MEMORY_KIB: Final = 19 * 1024
ARGON2_PASSES: Final = 2
ARGON2_LANES: Final = 1
PASSWORD_CHECKS_AT_ONCE: Final = 2
PASSWORD_FILE_BYTES_MAX: Final = 16 * MIB
USERNAME_CHARACTERS_MAX: Final = 255
# An anonymous identity is replaced this long before it expires.
IDENTITY_RENEWAL_DAYS: Final = 30
# Where that fails it is tried again after this long, not for each connection that comes meanwhile.
IDENTITY_RENEWAL_PAUSE_S: Final = 3600
# File systems allow names of 255 bytes; a label is a file name there.
KEY_FILE_NAME_BYTES_MAX: Final = 240
# The Credential Locker of Windows takes 2,560 bytes, two for each character, and user names of 512
# characters, to which a piece's tag and number are added.
KEYRING_PIECE_CHARACTERS_MAX: Final = 1_000
KEYRING_LABEL_BYTES_MAX: Final = 240
# How long a replicator or listener that was asked to stop may take before it is cut off.
STOP_TIMEOUT_S: Final = 10.0
# How long what was cut off may take to end: longer only where a function of the user's cannot be
# cancelled, which must not hold up those who wait for it.
CUT_TIMEOUT_S: Final = 1.0
# What of that is for conflict resolvers; the rest is for the checkpoint and the goodbye.
RESOLVING_TIMEOUT_S: Final = 4.0

# --- Replication (source of the figures: LiteCore's ReplicatorTuning.hh, unless told) -------------

CHANGES_PER_MESSAGE_MAX: Final = 200
CHANGES_MESSAGES_IN_FLIGHT_MAX: Final = 5
# What a list of offered changes may take, so that it fits into one frame with its properties.
OFFERS_BYTES_MAX: Final = FRAME_BYTES_MAX - 1024
# Rows in a list from a peer, which may have its own opinion on how long a list is; and values in
# all of them: five each, or some ancestors.
LISTED_ROWS_MAX: Final = 2_000
LISTED_VALUES_MAX: Final = 50_000
# Documents that a subscription may be restricted to.
SUBSCRIBED_DOCUMENTS_MAX: Final = 100_000
# What an ID among them takes beside its characters, as long as the subscription runs.
SUBSCRIBED_DOCUMENT_BYTES: Final = 128
# A sequence of a peer is any JSON, and kept as long as its revision is on its way.
SEQUENCE_CHARACTERS_MAX: Final = 1_024
# Revisions sent and not yet answered. LiteCore allows 10 because it answers each by itself; our
# inserter answers a whole batch, so a window of batches keeps both sides busy.
REVISIONS_UNANSWERED_MAX: Final = 1_000
REVISION_BYTES_UNANSWERED_MAX: Final = 2 * MIB
# Revisions requested from a pusher and not yet stored; change lists wait unanswered above it.
REVISIONS_REQUESTED_MAX: Final = 1_000
INSERT_BATCH_REVISIONS_MAX: Final = 500
# Versions in the vectors of the documents that proposals are judged by, before other tasks get a
# turn: reading them takes some two milliseconds.
JUDGED_VERSIONS_SLICE: Final = 2_500
# Versions told in one reply to proposals that are in conflict: the vectors of a whole list, were
# each document written by fifty authors, and some milliseconds of writing. Beyond it, only the
# current version is told of what a proposal conflicts with.
CONFLICT_VERSIONS_MAX: Final = 10_000
# Ancestors named when asking for a revision. Source: LiteCore's RevFinder.
ANCESTORS_MAX: Final = 10
# An async filter that takes longer counts as failed, for the sake of the documents behind it.
FILTER_TIMEOUT_S: Final = 60.0
# Documents that an async filter is asked about at once, before more are read from the feed.
FILTERED_AT_ONCE_MAX: Final = 1_000
# What their bodies take, as they are stored: some of the largest, or 64 KiB for each of so many.
FILTERED_BYTES_MAX: Final = 64 * MIB
# Blobs of one collection asked for at once, so that a large one does not hold up all others; and
# blobs sent at once on one connection, each of which has a file open and a part in memory.
BLOBS_FETCHED_AT_ONCE: Final = 4
BLOBS_SENT_AT_ONCE: Final = 8
# What a missing blob takes in memory while a revision waits for it: some hundred bytes, for its
# place in the queue and what is needed to ask for it.
BLOB_WANTED_BYTES: Final = 1_024
# How far a blob may be behind the time at which it would come at the least rate, before another
# session that wants it goes on with it. Some links bring less than a frame in that time; where
# these are the only ones, it doubles.
BLOB_PATIENCE_S: Final = 10.0
# A megabyte in two minutes: about what every message of a transport has to come at, too. It counts
# only where somebody waits, or a peer that sends a byte now and then could keep all from a blob.
BLOB_BYTES_PER_S_MIN: Final = 8 * 1024
# A checkpoint is saved this long after it changed, or after this many completed documents: what a
# crash may cause to be offered again.
CHECKPOINT_INTERVAL_S: Final = 1.0
CHECKPOINT_DOCUMENTS: Final = 1_000
# Each attempt that fails is one that another replication between the same databases won.
CHECKPOINT_ATTEMPTS_MAX: Final = 10
PROGRESS_INTERVAL_S: Final = 0.2
# A document whose proposal was refused with an ancestor of ours is proposed again this often.
PROPOSE_ATTEMPTS_MAX: Final = 3
# A resolver is asked again when the local document changed meanwhile. Source: Couchbase Lite.
RESOLVE_ATTEMPTS_MAX: Final = 10
# Documents of one collection whose resolvers run at once: one that waits for a person or a server
# holds up few others.
RESOLVED_DOCUMENTS_MAX: Final = 32
# Merges of two merges of a document, one after the other at one peer: more than peers that agree on
# how to merge ever need. Peers that do not might go on for ever; from here on, the default resolver
# chooses one of the two.
MERGES_OF_MERGES_MAX: Final = 5
# How long the pull may take to bring what a refused document conflicts with, once it has caught up,
# and all else to come to rest; after that the document is fetched by its ID.
FETCH_PAUSE_S: Final = 0.5
# A document that failed for now is tried again after this long while a continuous replication is
# connected; the pause doubles up to the longest one as long as anything fails.
RETRY_DOCUMENTS_S: Final = 5.0
RETRY_DOCUMENTS_S_MAX: Final = 300.0
# Documents that one subscription fetches by their IDs.
FETCHED_DOCUMENTS_MAX: Final = 1_000
# What is remembered of a peer that nothing names: documents of which several quick edits need not
# be refused first.
NOTED_DOCUMENTS_MAX: Final = 10_000
# Document events kept for a subscriber that comes late.
DOCUMENT_EVENTS_MAX: Final = 10_000
COLLECTIONS_PER_CONNECTION_MAX: Final = 1_000
# Checkpoints kept for other peers; a hostile client can invent IDs.
PEER_CHECKPOINTS_MAX: Final = 10_000
# Those of peers that mean well are some hundred bytes: this is so much more that it bounds only
# what hostile ones can fill a disk with.
PEER_CHECKPOINTS_BYTES_MAX: Final = 256 * MIB
# Our own: some for each remembered peer, or a program that names other documents each time would
# leave one behind each time.
LOCAL_CHECKPOINTS_MAX: Final = 10_000
# Peers we know the revisions of, document by document: a few in a mesh, hundreds for a hub that
# connects to its spokes. A listener that gives itself a new identity each time must not fill us.
REMOTES_MAX: Final = 1_000
# Addresses at which peers were met, which in many networks change by the day.
TARGETS_MAX: Final = 10_000
# Old revisions of a document that are kept for peers which have them. Peers that are up to date
# share one; more are needed only by those that were away for different times.
BASES_PER_DOCUMENT_MAX: Final = 8
CHECKPOINT_BYTES_MAX: Final = MIB
# Ranges of completed sequences in a checkpoint of ours: with 2 x 20 characters each it stays below
# what our listener takes. There is one for each document that waits among others that are done.
CHECKPOINT_RANGES_MAX: Final = 10_000
# Offered sequences that are not done, such as those of documents that failed for now, before what
# is offered behind them is not taken note of.
SEQUENCE_GAPS_MAX: Final = 10_000

# --- Retry (source: Couchbase Lite's defaults) ---------------------------------------------------

ATTEMPTS_ONE_SHOT: Final = 10
ATTEMPT_WAIT_S_MAX: Final = 300.0

# --- Command line --------------------------------------------------------------------------------

# One transaction of an import: a commit costs little beside so many documents.
IMPORT_BATCH_DOCUMENTS: Final = 1_000
# What the lines of one such transaction may take in memory, but for the last of them.
IMPORT_BATCH_BYTES: Final = 16 * MIB
# In a pipe, progress is a line each time so many more documents are done.
PROGRESS_LINE_DOCUMENTS: Final = 5_000
# Someone waits at the terminal: give up sooner than a program would.
SYNC_ATTEMPTS_ONE_SHOT: Final = 3
