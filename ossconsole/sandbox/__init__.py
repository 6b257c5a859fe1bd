"""An embedded OSS-compatible server on loopback, run as a process of its own.

The server: `app` (the process), `server` (sockets and dispatch), `request`, `signature`, `keys`, `api` (operations and
routes), `listing`, `replies`, `response`; its data in `store`, `index` and `records`; `accelerator` and `reading` (the
simulated speeds and the cache). Its users: `process` starts one of their own, `shared` the one of a folder.

For tests and demos alone: `faults` (with its part in `response`), `control` (faults, keys and the cache at run time),
`imds` (instance metadata), versioning in `index`, synthetic keys in `listing`, and the operations for ACLs, tags,
restore and append in `api`.
"""
