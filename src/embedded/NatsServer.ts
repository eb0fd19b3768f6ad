/** A private nats-server with JetStream on loopback, as a layer. Its data stays in `dataDir`. */
import { connect } from "@nats-io/transport-node"
import { Context, Effect, FileSystem, Layer, Path } from "effect"
import { freePort } from "./freePort.ts"
import { findNatsServer } from "./natsBinary.ts"
import { type ServerControl, ServerFailed, startServer, stopLeftover } from "./serverProcess.ts"

export interface NatsServerOptions {
  readonly dataDir: string
  /** The port to try first; the next free one is taken if it is in use. */
  readonly port: number
}

const host = "127.0.0.1"

const configuration = (options: {
  readonly port: number
  readonly dataDir: string
}) => `# Written by objectlog at every start.
listen: "${host}:${options.port}"
jetstream { store_dir: ${JSON.stringify(options.dataDir)} }
pid_file: ${JSON.stringify(`${options.dataDir}/nats-server.pid`)}
`

const answers = (url: string): Effect.Effect<boolean> =>
  Effect.promise(async () => {
    try {
      const connection = await connect({ servers: url, reconnect: false, timeout: 500 })
      await connection.close()
      return true
    } catch {
      return false
    }
  })

const make = Effect.fnUntraced(function* (options: NatsServerOptions) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const command = yield* findNatsServer
  const { dataDir } = options
  yield* fs.makeDirectory(dataDir, { recursive: true })
  const config = path.join(dataDir, "nats-server.conf")
  const leftover = yield* Effect.catch(fs.readFileString(path.join(dataDir, "nats-server.pid")), () =>
    Effect.succeed(""),
  )
  if (/^\d+\s*$/.test(leftover)) yield* stopLeftover(Number(leftover), ["nats-server", config], "SIGTERM")
  const port = yield* freePort(options.port, host)
  if (port === undefined) {
    return yield* new ServerFailed({ server: "nats-server", problem: `no free port from ${options.port} on` })
  }
  yield* fs.writeFileString(config, configuration({ port, dataDir }))
  const url = `nats://${host}:${port}`
  const control = yield* startServer({
    name: "nats-server",
    command,
    args: ["-c", config],
    logFile: path.join(dataDir, "nats-server.log"),
    account: undefined,
    stopSignal: "SIGTERM",
    ready: answers(url),
  })
  return NatsServer.of({ url, port, control })
})

export class NatsServer extends Context.Service<
  NatsServer,
  { readonly url: string; readonly port: number; readonly control: ServerControl }
>()("objectlog/embedded/NatsServer") {
  static readonly layer = (options: NatsServerOptions) =>
    Layer.effect(
      NatsServer,
      make(options).pipe(
        Effect.catchTag("PlatformError", (error) =>
          Effect.fail(new ServerFailed({ server: "nats-server", problem: error.message })),
        ),
      ),
    )
}
