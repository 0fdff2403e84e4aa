"""The status page of control, at `/`: routes in `control.page.routes`.

The server renders everything, so the page works without JavaScript. With it, `/events` sends the sections that changed, and
buttons call the HTTP API.
"""
