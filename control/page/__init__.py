"""The status page of control, at `/`: what the mirror does, for a browser; routes in `control.page.routes`.

The server renders everything, so the page reads the same without JavaScript. With it, `/events` sends the sections that
changed, and buttons call the HTTP API. Whatever comes from the network is escaped in one place, `control.page.markup`.
"""
