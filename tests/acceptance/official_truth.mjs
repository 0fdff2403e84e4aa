// What the official PDS and labeler say of themselves, over their public XRPC: the state that a mirror has to equal.
//
// Records are read twice, by listRecords and out of getRepo's CAR (verified by the official library against the key that
// PLC names); if the two differ the oracle itself is broken, and says so.

async function pages(url, key) {
  const found = []
  for (let cursor = ''; ; ) {
    const answer = await fetch(cursor ? `${url}&cursor=${encodeURIComponent(cursor)}` : url)
    const page = await answer.json()
    if (!answer.ok) throw new Error(`${url}: ${answer.status} ${JSON.stringify(page)}`)
    found.push(...page[key])
    if (!page.cursor) return found
    cursor = page.cursor
  }
}

async function ask(url) {
  const answer = await fetch(url)
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${await answer.text()}`)
  return answer
}

async function activeRepo(xrpc, did, signingKey, library) {
  const query = `did=${encodeURIComponent(did)}`
  const described = await (await ask(`${xrpc}/com.atproto.repo.describeRepo?repo=${encodeURIComponent(did)}`)).json()
  const records = {}
  for (const collection of described.collections) {
    const url = `${xrpc}/com.atproto.repo.listRecords?repo=${encodeURIComponent(did)}&collection=${collection}&limit=100`
    for (const record of await pages(url, 'records')) records[record.uri.slice(`at://${did}/`.length)] = record.cid
  }
  const latest = await (await ask(`${xrpc}/com.atproto.sync.getLatestCommit?${query}`)).json()
  const car = new Uint8Array(await (await ask(`${xrpc}/com.atproto.sync.getRepo?${query}`)).arrayBuffer())
  const { root, blocks } = await library.readCarWithRoot(car)
  const verified = await library.verifyRepo(blocks, root, did, signingKey)
  const signed = Object.fromEntries(verified.creates.map((leaf) => [`${leaf.collection}/${leaf.rkey}`, leaf.cid.toString()]))
  const canonical = (map) => JSON.stringify(Object.entries(map).sort())
  if (canonical(signed) !== canonical(records)) throw new Error(`${did}: listRecords and getRepo disagree`)
  if (verified.commit.rev !== latest.rev) throw new Error(`${did}: written to while it was read`)
  return { handle: described.handle, rev: latest.rev, commit: latest.cid, data: library.cborToLex(blocks.get(root)).data.toString(), records }
}

/** `library` is @atproto/repo. Every account that the PDS lists: [{did, active, status, and of an active one handle, rev, commit, data, records}]. */
export async function networkTruth({ pds, keyOf, library }) {
  const xrpc = `${pds}/xrpc`
  const accounts = []
  for (const { did, active, status } of await pages(`${xrpc}/com.atproto.sync.listRepos?limit=50`, 'repos')) {
    const content = active ? await activeRepo(xrpc, did, await keyOf(did), library) : {}
    accounts.push({ did, active: active ?? true, status: status ?? null, ...content })
  }
  return accounts
}
