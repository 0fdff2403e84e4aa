// The end of a script: SIGTERM, SIGINT, or whoever started it is gone (stdin at its end, or another parent).
const parent = process.ppid

/** Exits once `close` is done, with 0; with 1 when it takes longer than a minute. */
export function endAfter(close) {
  let ending = false
  async function end() {
    if (ending) return
    ending = true
    setTimeout(() => process.exit(1), 60_000).unref()
    await close()
    process.exit(0)
  }
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, end)
  process.stdin.on('end', end).resume()
  setInterval(() => process.ppid === parent || end(), 500)
}
