// Import this before anything that opens a server: the official packages listen on every interface, a test must not.
import { Server } from 'node:net'

const original = Server.prototype.listen

Server.prototype.listen = function (...args) {
  const given = args[0]
  const wanted = typeof given === 'object' && given !== null ? { ...given } : { port: Number(given) || 0 }
  if (wanted.path === undefined && wanted.fd === undefined) wanted.host = '127.0.0.1'
  return original.call(this, wanted, ...args.filter((value) => typeof value === 'function'))
}
