"""An embedded OSS-compatible server on loopback, run as a process of its own.

The server: `app` (the process), `server` (sockets and dispatch), `request`, `signature`, `keys`, `api` (operations and
routes), `listing`, `replies`, `response`; its data in `store`, `blobs`, `index` and `records`; `accelerator` and
`reading` (the simulated speeds and the cache). Its users: `process` starts one of their own, `shared` the one of a
folder.

For tests and demos alone: `faults` (with its part in `response`), `control` (faults, keys, restores and the cache at
run time), `imds` (instance metadata), `versions`, synthetic keys in `listing`, and of `api` the module `rules`
(versioning, retention, encryption) and the operations for restores, ACLs, tags, symbolic links and append.

The documentation of the service takes precedence over this server. Operations, parameters and headers that are not
implemented are refused with NotImplemented. Where the documentation is silent, a comment marks the decision.
"""
