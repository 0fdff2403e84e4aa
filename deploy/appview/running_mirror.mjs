// What a running `sluice up` says of itself, for an AppView beside it.
import { setServers } from 'node:dns'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

const LABELERS = `with recursive found as (
  (select src from sluice.label order by src limit 1)
  union all select (select src from sluice.label where src > found.src order by src limit 1) from found where found.src is not null
) select src from found where src is not null limit 100`

/** A mistake of the operator: one line, exit code 2. */
export class OperatorError extends Error {}

/** The contents of `processes.json` in a data folder, or in the folder of its simulated network. Throws OperatorError. */
export function registryOf(folder) {
  for (const place of [folder, join(folder, 'simulated')]) {
    try {
      const found = JSON.parse(readFileSync(join(place, 'processes.json'), 'utf8'))
      process.kill(found.up, 0)
      return found
    } catch {}
  }
  throw new OperatorError(`no \`sluice up\` runs in ${folder}; start it, or give --data-dir DIR or --database URL`)
}

/** Options of an AppView for this mirror. Handles are resolved by the mirror's own DNS server, if it has one. */
export function optionsOf(registry) {
  if (registry.dns) setServers([registry.dns])
  return { database: registry.database, plc: registry.plc, privateHosts: registry.allow_private_hosts }
}

/** The labelers whose labels the mirror has. Throws OperatorError if it does not keep the AppView's tables, or does not answer. */
export async function labelersOf(pool, url) {
  let rows
  try {
    rows = (await pool.query('select active from sluice.appview')).rows
  } catch (error) {
    throw new OperatorError(`the database ${new URL(url).host} has no tables of Sluice that can be read (${error.message})`)
  }
  if (!rows[0]?.active) {
    throw new OperatorError('the mirror has no tables for the AppView; start it with SLUICE_APPVIEW=true, then `sluice appview rebuild`')
  }
  return (await pool.query(LABELERS)).rows.map((row) => row.src)
}
