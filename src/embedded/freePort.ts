/** Finds a port to listen on: the wanted one, or the next that is free. */
import { Effect } from "effect"
import { createServer } from "node:net"

const isFree = (port: number, host: string): Effect.Effect<boolean> =>
  Effect.callback((resume) => {
    const server = createServer()
    server.once("error", () => resume(Effect.succeed(false)))
    server.listen({ port, host, exclusive: true }, () => server.close(() => resume(Effect.succeed(true))))
  })

/** The first free port of `wanted`, `wanted` + 1 …; `undefined` when the next hundred are all taken. */
export const freePort = Effect.fnUntraced(function* (wanted: number, host: string) {
  for (let port = wanted; port < wanted + 100 && port < 65_536; port++) {
    if (yield* isFree(port, host)) return port
  }
  return undefined
})
