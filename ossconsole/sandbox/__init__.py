"""An embedded OSS-compatible server on loopback, run as a process of its own.

The server: `app` (the process), `server` (sockets and dispatch), `request`, `signature`, `keys`, `api` (operations and
routes), `listing`, `replies`, `response`; its data in `store`, `blobs`, `index` and `records`; `accelerator` and
`reading` (the simulated speeds and the cache). Its users: `process` starts one of their own, `shared` the one of a
folder.

For tests and demos alone: `faults` (with its part in `response`), `control` (faults, keys, restores and the cache at
run time), `imds` (instance metadata), `versions`, synthetic keys in `listing`, and of `api` the modules `rules`
(versioning, retention, encryption) and `restores`, and the operations for ACLs, tags, symbolic links and append.

The page of the service wins over this server. What it does not implement it refuses with NotImplemented, parameters
and headers included; what a page leaves open is marked where it is decided.
"""
