// node rows.mjs MODULES POSTGRES_URL SCHEMA < [did, collection, rkey, cid, record, time] a line
// What the official indexer leaves of each record, alone in an empty database: {table: rows} a line; {} if it refuses it.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [, , modules, url, schema] = process.argv
process.env.LOG_ENABLED ??= 'false'
const require = createRequire(`${modules}/`)
const load = async (name) => import(pathToFileURL(require.resolve(name)))
const { Database, RepoSubscription } = await load('@atproto/bsky')
const { AtUri } = await load('@atproto/syntax')
// 0.0.221 takes the values of one package, 0.0.280 those of another
const { dependencies } = JSON.parse(readFileSync(`${modules}/@atproto/bsky/package.json`, 'utf8'))
const newer = dependencies['@atproto/lex'] && (await load('@atproto/lex'))
const parseCid = newer?.parseCid ?? require('multiformats/cid').CID.parse
const { jsonToLex } = newer ?? (await load('@atproto/lexicon'))

const db = new Database({ url, schema, poolSize: 4 })
await db.migrateToLatestOrThrow()
const { indexingSvc, background } = new RepoSubscription({ service: 'ws://127.0.0.1:9', db, idResolver: undefined })
const client = await db.pool.connect()
await client.query(`set search_path to "${schema}", public`)
const names = (
  await client.query(`select tablename from pg_tables where schemaname = $1 and tablename not like 'kysely%'`, [schema])
).rows.map((row) => row.tablename)
const all = names.map((name) => `select '${name}' as name, to_jsonb(t) as row from "${schema}"."${name}" t`).join(' union all ')
const none = names.map((name) => `delete from "${schema}"."${name}"`).join(';')

await client.query(none)
for (const line of readFileSync(0, 'utf8').split('\n').filter(Boolean)) {
  const [did, collection, rkey, cid, record, time] = JSON.parse(line)
  const found = {}
  try {
    await indexingSvc.indexRecord(AtUri.make(did, collection, rkey), parseCid(cid), jsonToLex(record), 'create', time)
  } catch (error) {
    if (process.env.WHY) found.why = String(error)
  }
  await background.processAll()
  for (const { name, row } of (await client.query(all)).rows) (found[name] ??= []).push(row)
  await client.query(none)
  process.stdout.write(`${JSON.stringify(found)}\n`)
}
client.release()
await db.close()
process.exit(0)
