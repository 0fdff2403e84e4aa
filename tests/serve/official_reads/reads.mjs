// The official client reads a repo from a server, and the official library verifies its CAR and the proofs of its records.
//
//   node reads.mjs MODULES_FOLDER SERVER DID SIGNING_KEY ABSENT_RKEY
//
// One JSON line on stdout: what the client got. It fails where the library refuses what the server sent.
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'

const [modules, service, did, key, absent] = process.argv.slice(2)
const require = createRequire(join(resolve(modules), '..', 'package.json'))
const { AtpAgent } = require('@atproto/api')
const { readCarWithRoot, verifyProofs, verifyRecords, verifyRepoCar } = require('@atproto/repo')

const { com } = new AtpAgent({ service })
const { sync, repo, identity, label } = com.atproto

const car = (await sync.getRepo({ did })).data
const verified = await verifyRepoCar(car, did, key)
const { root, blocks } = await readCarWithRoot(car)
const records = verified.creates.map(({ collection, rkey, cid }) => [`${collection}/${rkey}`, cid.toString()])

const pages = []
const { data: described } = await repo.describeRepo({ repo: did })
for (const collection of described.collections) {
  let cursor
  do {
    const { data } = await repo.listRecords({ repo: did, collection, limit: 7, cursor })
    pages.push(...data.records.map(({ uri, cid }) => [uri.slice(`at://${did}/`.length), cid.toString()]))
    cursor = data.cursor
  } while (cursor)
}

let proven = 0
const some = verified.creates.filter((_, at) => at % 9 === 0)
for (const { collection, rkey, cid } of some) {
  const proof = (await sync.getRecord({ did, collection, rkey })).data
  const { verified: claims, unverified } = await verifyProofs(proof, [{ collection, rkey, cid }], did, key)
  if (claims.length !== 1 || unverified.length) throw new Error(`no proof of ${collection}/${rkey}`)
  const [record] = await verifyRecords(proof, did, key)
  if (record.rkey !== rkey) throw new Error(`the proof of ${rkey} shows ${record.rkey}`)
  const { data } = await repo.getRecord({ repo: did, collection, rkey })
  if (data.cid !== cid.toString()) throw new Error(`${rkey} has ${data.cid}`)
  proven += 1
}
const [{ collection }] = verified.creates
const nothing = (await sync.getRecord({ did, collection, rkey: absent })).data
const none = await verifyProofs(nothing, [{ collection, rkey: absent, cid: null }], did, key)
if (none.verified.length !== 1) throw new Error('no proof that a record is absent')

async function errorOf(call) {
  try {
    await call()
  } catch (error) {
    return [error.constructor.name, error.status, error.error]
  }
  return null
}

const unknown = 'did:plc:unknownunknownunknownunk'
console.log(
  JSON.stringify({
    root: root.toString(),
    blocks: blocks.size,
    records,
    pages,
    proven,
    latest: (await sync.getLatestCommit({ did })).data,
    status: (await sync.getRepoStatus({ did })).data,
    listed: (await sync.listRepos({ limit: 1000 })).data.repos.map((one) => one.did),
    collections: described.collections,
    identity: (await identity.resolveIdentity({ identifier: did })).data,
    labels: (await label.queryLabels({ uriPatterns: ['*'] })).data.labels.length,
    errors: {
      getRepo: await errorOf(() => sync.getRepo({ did: unknown })),
      getLatestCommit: await errorOf(() => sync.getLatestCommit({ did: unknown })),
      getRecord: await errorOf(() => repo.getRecord({ repo: did, collection, rkey: absent })),
      resolveHandle: await errorOf(() => identity.resolveHandle({ handle: 'nobody.test' })),
    },
  }),
)
