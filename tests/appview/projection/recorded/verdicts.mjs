// node verdicts.mjs lenient|strict|times MODULES [NEW_MODULES] < lines (Node 22)
// lenient: [collection, record as JSON text] a line → one letter each, 1 is valid: @atproto/lexicon, as @atproto/bsky
//   0.0.221 uses it, out of MODULES, with the newest definitions, out of NEW_MODULES' @atproto/api.
// strict: the same, by the schemas that MODULES' @atproto/bsky (0.0.280) is built with.
// times: a text a line, as JSON → [text, valid for lenient, valid for strict, createdAt in the tables] a line.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [, , mode, modules, newModules] = process.argv
const require = createRequire(`${modules}/`)
const load = async (path, from = modules) => import(pathToFileURL(`${from}/${path}`))
const lines = readFileSync(0, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line))

function holds(check) {
  try {
    return check() !== false
  } catch {
    return false
  }
}

async function lenient() {
  const { Lexicons, jsonStringToLex } = require('@atproto/lexicon')
  const { schemas } = await load('@atproto/api/dist/index.js', newModules)
  const lexicons = new Lexicons(schemas)
  return ([id, text]) => holds(() => void lexicons.assertValidRecord(id, jsonStringToLex(text))) ? '1' : '0'
}

async function strict() {
  const { lexParse } = await load('@atproto/lex/dist/index.js')
  const schemas = await load('@atproto/bsky/dist/lexicons/index.js')
  const schema = (id) => id.split('.').reduce((at, name) => at[name], schemas)
  return ([id, text]) => holds(() => void schema(id).$check(lexParse(text))) ? '1' : '0'
}

async function times() {
  const { isValidISODateString } = require('iso-datestring-validator')
  const { isValidDatetime, normalizeDatetimeAlways } = require('@atproto/syntax')
  return (text) => {
    const row = [text, holds(() => isValidISODateString(text)), isValidDatetime(text), normalizeDatetimeAlways(text)]
    return `${JSON.stringify(row)}\n`
  }
}

const ask = await { lenient, strict, times }[mode]()
process.stdout.write(lines.map(ask).join(''))
