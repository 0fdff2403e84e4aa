// node lexicons.mjs NODE_MODULES > appview/lexicons.json
// The definitions that the AppView's records need, out of the published @atproto/api, without their prose.
import { createRequire } from 'node:module'

const { schemas } = createRequire(`${process.argv[2]}/`)('@atproto/api')
const documents = new Map(schemas.map((document) => [document.id, document]))
const records = [
  'app.bsky.actor.profile', 'app.bsky.actor.status', 'app.bsky.feed.generator', 'app.bsky.feed.like', 'app.bsky.feed.post',
  'app.bsky.feed.postgate', 'app.bsky.feed.repost', 'app.bsky.feed.threadgate', 'app.bsky.graph.block', 'app.bsky.graph.follow',
  'app.bsky.graph.list', 'app.bsky.graph.listblock', 'app.bsky.graph.listitem', 'app.bsky.graph.referencelistoptout',
  'app.bsky.graph.starterpack', 'app.bsky.graph.verification', 'app.bsky.labeler.service', 'app.bsky.notification.declaration',
  'com.germnetwork.declaration',
]
const kept = new Set([
  'type', 'required', 'nullable', 'items', 'ref', 'refs', 'closed', 'format', 'const', 'enum', 'default', 'minLength', 'maxLength',
  'minGraphemes', 'maxGraphemes', 'minimum', 'maximum',
])
const found = {}

function strip(definition, document) {
  const bare = {}
  for (const [key, value] of Object.entries(definition)) if (kept.has(key)) bare[key] = value
  if (bare.items) bare.items = strip(bare.items, document)
  if (bare.ref) bare.ref = visit(bare.ref, document)
  if (bare.refs) bare.refs = bare.refs.map((ref) => visit(ref, document))
  if (definition.properties) {
    bare.properties = {}
    for (const [key, value] of Object.entries(definition.properties)) bare.properties[key] = strip(value, document)
  }
  return bare
}

function visit(ref, document) {
  let [id, name] = ref.replace(/^lex:/, '').split('#')
  id ||= document
  name ||= 'main'
  const full = name === 'main' ? id : `${id}#${name}`
  if (!(full in found)) {
    found[full] = null // a definition may refer to itself
    const definition = documents.get(id).defs[name]
    found[full] = strip(definition.type === 'record' ? definition.record : definition, id)
  }
  return full
}

for (const id of records) visit(id, id)
const sorted = Object.fromEntries(Object.keys(found).sort().map((key) => [key, found[key]]))
console.log(JSON.stringify(sorted, null, 1))
