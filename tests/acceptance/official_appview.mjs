// The official AppView with its data plane on 127.0.0.1, over tables that anybody filled; and, if asked, its own indexer.
//
//   node official_appview.mjs --modules DIR/node_modules --database URL --migrate-only
//   node official_appview.mjs --modules DIR/node_modules --database URL --plc URL --pds URL [--labeler DID]
//        [--index ws://PDS]    migrates, then indexes every event since the first, strictly one after the other
//
// The tables are those of the schema `bsky`. One JSON line on stdout when it serves: {url, control, version}. On the control port:
// /indexed       {seq, errors}: the last event that is wholly in the tables, and what was refused
// /open/URL      starts a second AppView in this process, over the database of this (encoded) URL: {url}
// /close         stops every AppView but the first: {}
// It ends with SIGTERM, and when the process that started it is gone (stdin at its end, or another parent).
import './loopback.mjs'
import { endAfter } from './ending.mjs'
import { createRequire } from 'node:module'
import { createServer } from 'node:http'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { freePort, serve } from '../../deploy/appview/appview.mjs'

process.env.LOG_ENABLED = 'false'

const SERVICE = 'did:web:appview.test'
const { values: given } = parseArgs({
  options: {
    modules: { type: 'string' },
    database: { type: 'string' },
    'migrate-only': { type: 'boolean', default: false },
    plc: { type: 'string' },
    pds: { type: 'string' },
    labeler: { type: 'string' },
    index: { type: 'string' },
  },
})
const require = createRequire(join(resolve(given.modules), '..', 'package.json'))

/** A package of the folder, be it CommonJS or a module. */
async function load(name) {
  const loaded = await import(pathToFileURL(require.resolve(name)))
  return { ...loaded.default, ...loaded }
}

const official = await load('@atproto/bsky')
const { Secp256k1Keypair } = await load('@atproto/crypto')
const { Firehose } = await load('@atproto/sync')

async function migrate() {
  const migrator = new official.Database({ url: given.database, schema: 'bsky', poolSize: 2 })
  await migrator.migrateToLatestOrThrow()
  await migrator.close()
}

if (given.index || given['migrate-only']) await migrate()
if (given['migrate-only']) process.exit(0)

// ------------------------------------------------------------------------------------------------ the AppView
// handles under .test have no DNS: their PDS knows them
async function askPds(handle) {
  const answer = await fetch(`${given.pds}/xrpc/com.atproto.identity.resolveHandle?handle=${encodeURIComponent(handle)}`)
  return answer.ok ? (await answer.json()).did : undefined
}

async function open(database) {
  const port = await freePort()
  const running = await serve(official, await Secp256k1Keypair.create(), {
    database,
    pool: 8,
    port,
    publicUrl: `http://127.0.0.1:${port}`,
    did: SERVICE,
    plc: given.plc,
    labelers: given.labeler ? [given.labeler] : [],
    privateHosts: true,
  })
  // the data plane has no resolver of .test handles before it serves, and nothing is asked of it before
  for (const resolver of [running.dataPlane.idResolver, running.appView.ctx.idResolver]) resolver.handle.resolve = askPds
  return running
}

const first = await open(given.database)
const { dataPlane, database } = first
const others = []

// ------------------------------------------------------------------------------------------------ its own indexer
let seq = 0
const errors = []
const subscription = given.index && new official.RepoSubscription({ service: given.index, db: database, idResolver: dataPlane.idResolver })

async function index(event) {
  const { indexingSvc: indexing, background } = subscription
  const handle = (force) => indexing.indexHandle(event.did, event.time, force)
  if (event.event === 'account') {
    if (event.status === 'deleted') await indexing.deleteActor(event.did)
    else await indexing.updateActorStatus(event.did, event.active, event.status)
  } else if (event.event === 'identity') {
    await handle(true)
  } else if (event.event === 'sync') {
    await indexing.setCommitLastSeen(event.did, event.cid, event.rev)
    await handle(false)
  } else {
    const stored = event.event === 'delete' ? indexing.deleteRecord(event.uri) : indexing.indexRecord(event.uri, event.cid, event.record, event.event, event.time)
    await stored.catch((error) => errors.push(`${event.event} ${event.uri}: ${error}`)) // a record that it refuses; the commit still counts
    await indexing.setCommitLastSeen(event.did, event.commit, event.rev)
    await handle(false)
  }
  await background.processAll() // the counts
}

// its own runner works on all accounts at once, so that what it makes depends on chance; this one is a queue
let queue = Promise.resolve()
const oneByOne = {
  getCursor: () => 0,
  trackEvent: (_did, at, handler) => (queue = queue.then(handler).then(() => (seq = at))),
}
const firehose =
  subscription &&
  new Firehose({
    idResolver: dataPlane.idResolver,
    service: given.index,
    runner: oneByOne,
    handleEvent: index,
    onError: (error) => errors.push(`${error} ${error.cause ?? ''}`),
    unauthenticatedCommits: true,
    unauthenticatedHandles: true,
  })
void firehose?.start()

// ------------------------------------------------------------------------------------------------ orders and end
async function obey(path) {
  const [, order, argument] = path.split('/')
  if (order === 'indexed') return { seq, errors }
  if (order === 'open') {
    others.push(await open(decodeURIComponent(argument)))
    return { url: others.at(-1).url }
  }
  if (order === 'close') {
    while (others.length) await others.pop().stop()
    return {}
  }
  throw new Error(`there is no order ${path}`)
}

const control = createServer((request, response) =>
  obey(request.url).then(
    (answer) => response.writeHead(200).end(JSON.stringify(answer)),
    (error) => response.writeHead(500).end(String(error?.stack ?? error)),
  ),
)
await new Promise((done) => control.listen(0, done))

endAfter(async () => {
  control.close()
  await firehose?.destroy()
  for (const running of [...others, first]) await running.stop()
})

console.log(
  JSON.stringify({
    url: first.url,
    control: `http://127.0.0.1:${control.address().port}`,
    version: require('@atproto/bsky/package.json').version,
  }),
)
