// A client of Jetstream v1, unmodified: what it gives to its caller, one event a line.
//
//   node client.mjs MODULES_FOLDER LIBRARY URL OPTIONS
//
// OPTIONS is the JSON of `wantedCollections`, `wantedDids`, `cursor`. A line on stdin has options that replace the filters. What
// the library refuses is a line {"error": …}.
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const [modules, library, url, given] = process.argv.slice(2)
const options = JSON.parse(given)
const folder = resolve(modules)
const { WebSocket } = createRequire(join(folder, '..', 'package.json'))('ws')
const load = (entry) => import(pathToFileURL(join(folder, library, entry)).href)
const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`)
const refused = (error) => say({ error: String(error?.message ?? error) })

const clients = {
  '@atcute/jetstream': async () => {
    const { JetstreamSubscription } = await load('dist/index.js')
    const client = new JetstreamSubscription({ url, ws: { WebSocket }, onError: refused, ...options })
    const read = async () => {
      for await (const event of client) say(event)
    }
    read()
    return client
  },
  '@skyware/jetstream': async () => {
    const { Jetstream } = await load('dist/index.js')
    const client = new Jetstream({ endpoint: url, ws: WebSocket, ...options })
    for (const kind of ['commit', 'identity', 'account']) client.on(kind, say)
    client.start()
    return client
  },
}

const client = await clients[library]()
createInterface({ input: process.stdin }).on('line', (line) => client.updateOptions(JSON.parse(line)))
process.stdin.on('end', () => process.exit())
