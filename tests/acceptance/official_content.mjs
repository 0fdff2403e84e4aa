// What the accounts of the official network hold: records of every kind that the AppView knows, and some that it does not.
//
// Each function returns writes ({action, collection, rkey?, value}) and makes no request. The order is a seed's: the same
// seed gives the same shape of network (DIDs, rkeys and times differ from run to run).

export const CUSTOM = 'com.example.sluice.trial'

// mulberry32: small, and good enough to vary a test's content
export function dice(seed) {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
  }
  return { below: (n) => Math.floor(next() * n), pick: (list) => list[Math.floor(next() * list.length)] }
}

const stamp = () => new Date().toISOString()
const create = (collection, value, rkey) => ({
  action: 'create',
  collection,
  ...(rkey === undefined ? {} : { rkey }),
  value: { $type: collection, ...value },
})

export const profile = (name, extra = {}) =>
  create('app.bsky.actor.profile', { displayName: name, description: `${name} 🦋 ünd\nso on`, ...extra }, 'self')
export const post = (text, extra = {}) => create('app.bsky.feed.post', { text, langs: ['en'], createdAt: stamp(), ...extra })
export const like = (subject) => create('app.bsky.feed.like', { subject, createdAt: stamp() })
export const repost = (subject) => create('app.bsky.feed.repost', { subject, createdAt: stamp() })
export const follow = (subject) => create('app.bsky.graph.follow', { subject, createdAt: stamp() })

/** First layer: what needs no other record. `image` is an uploaded blob. */
export function ownRecords(account, number, posts, image, random) {
  const writes = [profile(`Person ${number}`, number % 3 === 0 ? { avatar: image } : {})]
  for (let k = 0; k < posts; k++) {
    const kind = random.below(5)
    if (kind === 0) writes.push(post(`a picture ${k}`, { embed: { $type: 'app.bsky.embed.images', images: [{ image, alt: '' }] } }))
    else if (kind === 1)
      writes.push(
        post(`a page ${k}`, {
          embed: { $type: 'app.bsky.embed.external', external: { uri: 'https://example.com/', title: 'page', description: '' } },
          tags: ['news'],
        }),
      )
    else if (kind === 2)
      writes.push(
        post(`@me wrote ${k}`, {
          facets: [{ index: { byteStart: 0, byteEnd: 3 }, features: [{ $type: 'app.bsky.richtext.facet#mention', did: account.did }] }],
        }),
      )
    else writes.push(post(`plain words ${k} "quoted" \\ and\ttabbed`))
  }
  return writes
}

/** Second layer: what points at others' posts ({uri, cid}) and accounts (DIDs). */
export function socialRecords(account, others, posts, random) {
  const writes = []
  const some = (list, n) => [...new Set(Array.from({ length: n }, () => random.pick(list)))]
  for (const did of some(others, 4)) writes.push(follow(did))
  for (const subject of some(posts, 6)) writes.push(like(subject))
  for (const subject of some(posts, 2)) writes.push(repost(subject))
  const parent = random.pick(posts)
  writes.push(post('a reply', { reply: { root: parent, parent } }))
  writes.push(post('a quotation', { embed: { $type: 'app.bsky.embed.record', record: random.pick(posts) } }))
  return writes
}

/** The rarer kinds, once each. `own` is a post of the account itself. */
export function rareRecords(account, other, own) {
  const tid = own.uri.split('/').pop()
  const list = '3jzfcijpj2z2a'
  const listUri = `at://${account.did}/app.bsky.graph.list/${list}`
  return [
    create('app.bsky.graph.block', { subject: other, createdAt: stamp() }),
    create('app.bsky.graph.list', { purpose: 'app.bsky.graph.defs#curatelist', name: 'friends', createdAt: stamp() }, list),
    create('app.bsky.graph.listitem', { list: listUri, subject: other, createdAt: stamp() }),
    create('app.bsky.graph.listblock', { subject: listUri, createdAt: stamp() }),
    create('app.bsky.graph.starterpack', { name: 'begin here', list: listUri, createdAt: stamp() }),
    create('app.bsky.graph.verification', { subject: other, handle: 'other.test', displayName: 'Other', createdAt: stamp() }),
    create('app.bsky.feed.generator', { did: 'did:web:feed.invalid', displayName: 'a feed', createdAt: stamp() }, 'a-feed'),
    create('app.bsky.feed.threadgate', { post: own.uri, allow: [], createdAt: stamp() }, tid),
    create('app.bsky.feed.postgate', { post: own.uri, embeddingRules: [{ $type: 'app.bsky.feed.postgate#disableRule' }], createdAt: stamp() }, tid),
    create('app.bsky.labeler.service', { policies: { labelValues: ['spam'] }, createdAt: stamp() }, 'self'),
    create('app.bsky.actor.status', { status: 'app.bsky.actor.status#live', createdAt: stamp() }, 'self'),
    create('chat.bsky.actor.declaration', { allowIncoming: 'none' }, 'self'),
  ]
}

/** Records of a lexicon that nobody published, with values on which decoders and databases stumble. */
export function oddRecords(link) {
  const deep = (levels) => (levels ? { in: [deep(levels - 1)] } : { end: null })
  return [
    create(CUSTOM, { numbers: [Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER, 0, -1], yes: true, no: false, none: null }, 'numbers'),
    create(CUSTOM, { nul: 'a\u0000b', spelled: '\\u0000', lines: '\r\n\t\b\f\u2028', 'k\u0000y': 1 }, 'nul'),
    create(CUSTOM, { bytes: Uint8Array.from({ length: 257 }, (_, k) => k & 255), empty: new Uint8Array(0) }, 'bytes'),
    create(CUSTOM, { link, links: [{ deeper: link }] }, 'link'),
    create(CUSTOM, { text: 'ß🦋'.repeat(15_000) }, 'long'),
    create(CUSTOM, { nested: deep(20) }, 'deep'),
    create(CUSTOM, { '': 'no key', 'ключ': {}, list: [], z: 1, aa: 2, b: 3 }, 'keys'),
    create(CUSTOM, { createdAt: 'the day before yesterday' }, 'no-date'),
    create(CUSTOM, { text: 'any rkey' }, 'A-b_c~d:e.f'),
  ]
}
