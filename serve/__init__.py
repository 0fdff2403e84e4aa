"""The process that answers clients: `sluice run serve`. It is stateless: any number of replicas run side by side.

    /subscribe                     Jetstream v1, a websocket (stream/)
    /xrpc/NSID                     Jetstream v2 (stream/) and reads (xrpc/)

`application.py` has the routes, `guard.py` limits and the token, `serve_process.py` the process. It listens at SLUICE_SERVE_LISTEN;
health and metrics have their own port, as in every process. docs/serving.md compares each endpoint with the official one.
"""
