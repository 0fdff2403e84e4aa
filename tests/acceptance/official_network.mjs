// The official PLC directory, PDS and (with --ozone POSTGRES_URL) Ozone labeler on 127.0.0.1, filled with accounts.
//
//   node official_network.mjs --modules DIR/node_modules --data DIR [--accounts 8] [--posts 6] [--seed 1] [--ozone URL]
//
// One JSON line on stdout when everything is written: {plc, pds, control, labeler: {did, url} | null, versions}. Then it
// takes orders, POST /<order> with a JSON body, one after the other; see `orders`. It ends with SIGTERM, and when whoever
// started it is gone (stdin at its end, or another parent).
import './loopback.mjs'
import { endAfter } from './ending.mjs'
import { createRequire } from 'node:module'
import { createServer } from 'node:http'
import { mkdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { dice, follow, like, oddRecords, ownRecords, post, profile, rareRecords, repost, socialRecords } from './official_content.mjs'
import { networkTruth } from './official_truth.mjs'

process.env.LOG_ENABLED = 'false'

const { values: given } = parseArgs({
  options: {
    modules: { type: 'string' },
    data: { type: 'string' },
    accounts: { type: 'string', default: '8' },
    posts: { type: 'string', default: '6' },
    seed: { type: 'string', default: '1' },
    ozone: { type: 'string' },
  },
})
const require = createRequire(join(resolve(given.modules), '..', 'package.json'))
const { TestPlc, TestPds, TestOzone, mockNetworkUtilities } = require('@atproto/dev-env')
const { AtpAgent } = require('@atproto/api')
const random = dice(Number(given.seed))

// ------------------------------------------------------------------------------------------------ servers
const plc = await TestPlc.create({})
mkdirSync(join(given.data, 'pds'), { recursive: true })
const pds = await TestPds.create({
  didPlcUrl: plc.url,
  dataDirectory: join(given.data, 'pds'),
  blobstoreDiskLocation: join(given.data, 'blobs'),
})
mockNetworkUtilities(pds) // handles under .test have no DNS: the PDS must believe its own
const admin = { headers: pds.adminAuthHeaders(), encoding: 'application/json' }
const labeler = given.ozone ? await startLabeler(given.ozone) : null

async function freePort() {
  const probe = createServer()
  await new Promise((done) => probe.listen(0, done))
  const { port } = probe.address()
  await new Promise((done) => probe.close(done))
  return port
}

async function startLabeler(database) {
  const { Secp256k1Keypair } = require('@atproto/crypto')
  const port = await freePort()
  const key = await Secp256k1Keypair.create({ exportable: true })
  const client = plc.getClient()
  const did = await client.createDid({
    signingKey: key.did(),
    rotationKeys: [key.did()],
    handle: 'labeler.test',
    pds: pds.url,
    signer: key,
  })
  // a labeler's DID document names its label key and its service apart from those of its account
  await client.updateData(did, key, (last) => ({
    ...last,
    verificationMethods: { ...last.verificationMethods, atproto_label: key.did() },
    services: { ...last.services, atproto_labeler: { type: 'AtprotoLabeler', endpoint: `http://localhost:${port}` } },
  }))
  const ozone = await TestOzone.create({
    port,
    plcUrl: plc.url,
    signingKey: key,
    serverDid: did,
    dbPostgresUrl: database,
    dbPostgresSchema: 'ozone',
    appviewUrl: pds.url,
    appviewDid: pds.ctx.cfg.service.did,
    appviewPushEvents: false,
    pdsUrl: pds.url,
    pdsDid: pds.ctx.cfg.service.did,
  })
  return { did, ozone, moderator: ozone.getModClient() }
}

// ------------------------------------------------------------------------------------------------ accounts and writes
const accounts = new Map() // DID → {did, handle, agent, posts: [{uri, cid}], likes: [rkey], image}
const PIXEL = Buffer.from('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGOoBwAAgQCA05RTSgAAAABJRU5ErkJggg==', 'base64') // one grey pixel, PNG

async function openAccount(handle) {
  const agent = new AtpAgent({ service: pds.url })
  const { data } = await agent.createAccount({ handle, email: `${handle.split('.')[0]}@example.test`, password: 'not-a-secret' })
  const image = (await agent.uploadBlob(PIXEL, { encoding: 'image/png' })).data.blob
  const account = { did: data.did, handle, agent, posts: [], likes: [], image }
  accounts.set(account.did, account)
  return account
}

function remember(account, { action, collection }, uri, cid) {
  if (action !== 'create') return
  if (collection === 'app.bsky.feed.post') account.posts.push({ uri, cid })
  if (collection === 'app.bsky.feed.like') account.likes.push(uri.split('/').pop())
}

/** Each write a commit of its own; {uri, cid} of what it left. `validate: false` writes what no lexicon allows. */
async function write(account, { action, collection, rkey, value, validate }) {
  const { repo } = account.agent.com.atproto
  const path = { repo: account.did, collection, rkey }
  if (action === 'delete') return void (await repo.deleteRecord(path))
  const whole = { ...path, record: value, validate }
  const { data } = action === 'create' ? await repo.createRecord(whole) : await repo.putRecord(whole)
  remember(account, { action, collection }, data.uri, data.cid)
  return { uri: data.uri, cid: data.cid }
}

/** All in one commit (200 at most: the protocol's limit); {uri, cid} of each, null of a delete. */
async function writeTogether(account, writes) {
  const made = []
  for (let from = 0; from < writes.length; from += 200) {
    const part = writes.slice(from, from + 200)
    const { data } = await account.agent.com.atproto.repo.applyWrites({
      repo: account.did,
      writes: part.map(({ action, ...rest }) => ({ $type: `com.atproto.repo.applyWrites#${action}`, ...rest })),
    })
    part.forEach((one, at) => remember(account, one, data.results[at].uri, data.results[at].cid))
    made.push(...data.results.map(({ uri, cid }) => (uri ? { uri, cid } : null)))
  }
  return made
}

async function fill(count, posts) {
  const made = []
  for (let number = 0; number < count; number++) made.push(await openAccount(`person${number}.test`))
  for (const [number, account] of made.entries()) await writeTogether(account, ownRecords(account, number, posts, account.image, random))
  const everyPost = made.flatMap((account) => account.posts)
  for (const account of made) {
    const others = made.filter((other) => other !== account).map((other) => other.did)
    await writeTogether(account, socialRecords(account, others, everyPost, random))
  }
  const [first, second] = made
  await writeTogether(first, rareRecords(first, second.did, first.posts[0]))
  await writeTogether(second, oddRecords(first.image.ref))
}

/** n commits on the accounts given, one request at a time per account, all accounts at once. */
async function burst(dids, n) {
  const crowd = dids.map((did) => accounts.get(did))
  const subjects = crowd.flatMap((account) => account.posts)
  const share = (at) => Math.floor(n / crowd.length) + (at < n % crowd.length ? 1 : 0)
  await Promise.all(
    crowd.map(async (account, at) => {
      for (let k = 0; k < share(at); k++) {
        const kind = random.below(10)
        if (kind < 4) await write(account, post(`burst ${k}`))
        else if (kind < 6) await write(account, like(random.pick(subjects)))
        else if (kind < 7) await write(account, repost(random.pick(subjects)))
        else if (kind < 8) await write(account, follow(random.pick(dids)))
        else if (kind < 9 && account.likes.length)
          await write(account, { action: 'delete', collection: 'app.bsky.feed.like', rkey: account.likes.pop() })
        else await write(account, { ...profile(`renamed ${k}`), action: 'update' })
      }
    }),
  )
}

// ------------------------------------------------------------------------------------------------ orders
const orders = {
  /** The state that a mirror has to equal. */
  truth: () =>
    networkTruth({
      pds: pds.url,
      keyOf: async (did) => (await plc.getClient().getDocumentData(did)).verificationMethods.atproto,
      library: require('@atproto/repo'),
    }),
  /** writes: [{action, collection, rkey?, value}]; together: all in one commit. The answer: {uri, cid} of each. */
  async write({ did, writes, together = false }) {
    const account = accounts.get(did)
    if (together) return await writeTogether(account, writes)
    const made = []
    for (const one of writes) made.push(await write(account, one))
    return made
  },
  async account({ handle }) {
    const account = await openAccount(handle)
    await writeTogether(account, ownRecords(account, accounts.size, 4, account.image, random))
    return { did: account.did }
  },
  /** A picture of the account's, uploaded, as records name it. (Once nothing refers to it any more, it is gone.) */
  image: async ({ did }) => (await accounts.get(did).agent.uploadBlob(PIXEL, { encoding: 'image/png' })).data.blob,
  /** A blob of its own, uploaded as a video. */
  film: async ({ did }) => (await accounts.get(did).agent.uploadBlob(Buffer.from(`a film of ${did}`), { encoding: 'video/mp4' })).data.blob,
  /** The last sequence number of the stream. */
  seq: () => pds.ctx.sequencer.curr(),
  /** A token that the PDS signs with the account's key: whoever has it asks `service` for `method` as this account. */
  async service_auth({ did, service, method }) {
    const exp = Math.floor(Date.now() / 1000) + 1800
    return (await accounts.get(did).agent.com.atproto.server.getServiceAuth({ aud: service, lxm: method, exp })).data.token
  },
  burst: ({ dids, n }) => burst(dids, n),
  handle: ({ did, handle }) => accounts.get(did).agent.com.atproto.identity.updateHandle({ handle }).then(() => null),
  deactivate: ({ did }) => accounts.get(did).agent.com.atproto.server.deactivateAccount({}).then(() => null),
  activate: ({ did }) => accounts.get(did).agent.com.atproto.server.activateAccount().then(() => null),
  async takedown({ did, applied }) {
    const subject = { $type: 'com.atproto.admin.defs#repoRef', did }
    const takedown = applied ? { applied, ref: 'acceptance' } : { applied }
    await new AtpAgent({ service: pds.url }).com.atproto.admin.updateSubjectStatus({ subject, takedown }, admin)
  },
  async delete_account({ did }) {
    await new AtpAgent({ service: pds.url }).com.atproto.admin.deleteAccount({ did }, admin)
  },
  /** Labels on an account, or with a uri and cid on a record; `negate` takes labels back. */
  async label({ did, uri, cid, create = [], negate = [] }) {
    await labeler.moderator.emitEvent({
      event: { $type: 'tools.ozone.moderation.defs#modEventLabel', createLabelVals: create, negateLabelVals: negate },
      subject: uri ? { $type: 'com.atproto.repo.strongRef', uri, cid } : { $type: 'com.atproto.admin.defs#repoRef', did },
      createdBy: labeler.did,
    })
    await labeler.ozone.processAll()
  },
  /** The labeler's own table, negations included. */
  labels: () => labeler.ozone.ctx.db.db.selectFrom('label').select(['src', 'uri', 'cid', 'val', 'neg', 'cts', 'exp']).execute(),
}

async function obey(request) {
  let body = ''
  for await (const chunk of request) body += chunk
  const order = orders[request.url.slice(1)]
  if (!order) throw new Error(`there is no order ${request.url}`)
  const answer = await order(body ? JSON.parse(body) : {})
  await pds.processAll()
  return answer ?? {}
}

await fill(Number(given.accounts), Number(given.posts))
let last = Promise.resolve()
const control = createServer((request, response) => {
  last = last.then(() => obey(request)).then(
    (answer) => response.writeHead(200).end(JSON.stringify(answer)),
    (error) => response.writeHead(500).end(String(error?.stack ?? error)),
  )
})
await new Promise((done) => control.listen(0, done))

// ------------------------------------------------------------------------------------------------ end
endAfter(async () => {
  control.close()
  for (const server of [labeler?.ozone, pds, plc]) await server?.close()
})

const version = (name) => require(`${name}/package.json`).version
console.log(
  JSON.stringify({
    plc: plc.url,
    pds: pds.url,
    control: `http://127.0.0.1:${control.address().port}`,
    labeler: labeler && { did: labeler.did, url: labeler.ozone.url },
    versions: Object.fromEntries(['pds', ...(labeler ? ['ozone'] : [])].map((name) => [name, version(`@atproto/${name}`)])),
  }),
)
