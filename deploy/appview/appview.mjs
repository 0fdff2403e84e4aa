// The official AppView (@atproto/bsky) on Sluice's tables, the schema `bsky` of one database.
//
//   npm install
//   node appview.mjs --data-dir DIR | --database URL [--port 2584] [--public-url URL] [--did DID] [--plc URL] [--labeler DID]… [--bsync URL]
//
// --data-dir: that of a running `sluice up`, whose database, PLC directory, DNS and labelers it uses; `make appview` gives it.
// One JSON line on stdout when it serves: {url, version}. It ends with SIGTERM. In the environment: APPVIEW_SIGNING_KEY (hex,
// secp256k1; without it one of this run), APPVIEW_ADMIN_PASSWORD (for takedowns), APPVIEW_BSYNC_KEY. Mutes, preferences and
// what was seen live in bsync, a service of its own: where there is none, what is asked of it fails and all else is served.
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { OperatorError, labelersOf, optionsOf, registryOf } from './running_mirror.mjs'

/** A port that is free now. */
export async function freePort() {
  const probe = createServer()
  await new Promise((done) => probe.listen(0, done))
  const { port } = probe.address()
  await new Promise((done) => probe.close(done))
  return port
}

/** Start data plane and AppView of the package `official`; {url, appView, dataPlane, database, stop}. */
export async function serve(official, signingKey, given) {
  const database = new official.Database({ url: given.database, schema: 'bsky', poolSize: given.pool ?? 20 })
  const dataPort = await freePort()
  const dataPlane = await official.DataPlaneServer.create(database, dataPort, given.plc, globalThis.fetch)
  const config = new official.ServerConfig({
    version: 'sluice',
    port: given.port,
    publicUrl: given.publicUrl,
    serverDid: given.did,
    alternateAudienceDids: [],
    etcdHosts: [],
    dataplaneUrls: [`http://127.0.0.1:${dataPort}`],
    dataplaneHttpVersion: '1.1',
    bsyncUrl: given.bsync ?? 'http://127.0.0.1:9',
    bsyncApiKey: given.bsyncKey ?? 'none',
    bsyncHttpVersion: '1.1',
    didPlcUrl: given.plc,
    modServiceDid: given.labelers[0] ?? given.did,
    labelsFromIssuerDids: given.labelers,
    adminPasswords: given.adminPasswords ?? [],
    disableSsrfProtection: given.privateHosts ?? false,
    feedGenSkeletonTimeout: 10_000,
    maxThreadParents: 50,
    draftsLimit: 500,
    bigThreadUris: new Set(),
    debugFieldAllowedDids: new Set(),
    searchTagsHide: new Set(),
    searchTagsHideAll: new Set(),
    threadTagsBumpDown: new Set(),
    threadTagsHide: new Set(),
    visibilityTagHide: '',
    visibilityTagRankPrefix: '',
  })
  const appView = official.BskyAppView.create({ config, signingKey })
  await appView.start()
  const stop = async () => {
    for (const part of [appView, dataPlane]) await part.destroy()
    await database.close()
  }
  return { url: given.publicUrl, appView, dataPlane, database, stop }
}

async function main() {
  const { values } = parseArgs({
    options: {
      'data-dir': { type: 'string' },
      database: { type: 'string' },
      port: { type: 'string', default: '2584' },
      'public-url': { type: 'string' },
      did: { type: 'string', default: 'did:web:localhost' },
      plc: { type: 'string' },
      labeler: { type: 'string', multiple: true },
      bsync: { type: 'string' },
    },
  })
  if (!values.database && !values['data-dir']) {
    throw new OperatorError('--database is missing: the URL of the database that Sluice fills, postgresql://…; or --data-dir DIR')
  }
  const mirror = values['data-dir'] ? optionsOf(registryOf(values['data-dir'])) : {}
  const url = values.database ?? mirror.database
  const official = await import('@atproto/bsky')
  const asked = new official.Database({ url, schema: 'bsky', poolSize: 1 })
  const labelers = await labelersOf(asked.pool, url).finally(() => asked.close())
  const environment = process.env
  const { Secp256k1Keypair } = await import('@atproto/crypto')
  const secret = environment.APPVIEW_SIGNING_KEY
  const running = await serve(
    official,
    await (secret ? Secp256k1Keypair.import(secret) : Secp256k1Keypair.create()),
    {
      database: url,
      port: Number(values.port),
      publicUrl: values['public-url'] ?? `http://127.0.0.1:${values.port}`,
      did: values.did,
      plc: values.plc ?? mirror.plc ?? 'https://plc.directory',
      privateHosts: mirror.privateHosts,
      labelers: values.labeler ?? (values['data-dir'] ? labelers : []),
      bsync: values.bsync,
      bsyncKey: environment.APPVIEW_BSYNC_KEY,
      adminPasswords: environment.APPVIEW_ADMIN_PASSWORD ? [environment.APPVIEW_ADMIN_PASSWORD] : [],
    },
  )
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => running.stop().then(() => process.exit(0)))
  const { version } = createRequire(import.meta.url)('@atproto/bsky/package.json')
  console.log(JSON.stringify({ url: running.url, version }))
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  await main().catch((error) => {
    if (!(error instanceof OperatorError)) throw error
    console.error(`appview.mjs: ${error.message}`)
    process.exit(2)
  })
}
