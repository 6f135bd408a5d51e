"""The hosted endpoint's protocol on ComfyUI's own server, which answers the official clients locally.

The pack's root calls `install.install` and nothing else. Nothing here computes: the API fills a request's values into
the committed workflow and puts that into ComfyUI's own queue.
"""
