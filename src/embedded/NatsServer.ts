/**
 * A private nats-server with JetStream on loopback, as a layer. Its data stays in `dataDir` and is found again by the next
 * start. Whoever may read the password there may use it, and nobody else on this machine.
 */
import { connect } from "@nats-io/transport-node"
import { Context, Effect, Exit, FileSystem, Layer, Path, Redacted, Scope } from "effect"
import { randomUUID } from "node:crypto"
import { connectionOptions } from "../nats/connectionOptions.ts"
import { unusable } from "./dataFolder.ts"
import { storeLimitOf } from "./disk.ts"
import { freePort } from "./freePort.ts"
import { findNatsServer } from "./natsBinary.ts"
import { ownPassword, writePrivate } from "./privateFile.ts"
import { claimFolder, reapLeftover } from "./reaper.ts"
import { ServerFailed } from "./serverProcess.ts"
import { type ServerControl, startServer } from "./supervisor.ts"

export interface NatsServerOptions {
  readonly dataDir: string
  /** The port to try first; the next free one is taken if it is in use. */
  readonly port: number
  /** Fail when the port is in use, rather than take the next one. Default: false. */
  readonly portIsFixed?: boolean
  /** Bytes that JetStream may store in files. Default: what `storeLimitOf` finds. */
  readonly maxFileStore?: number
}

const host = "127.0.0.1"
const user = "objectlog"

/** How often a port that was taken between the look and the start is replaced by another one. */
const portAttempts = 5

const configuration = (options: {
  readonly port: number
  readonly dataDir: string
  readonly name: string
  readonly password: Redacted.Redacted
  readonly maxFileStore: number | undefined
}) => `# Written by objectlog at every start.
server_name: ${JSON.stringify(options.name)}
listen: "${host}:${options.port}"
authorization { user: ${user}, password: ${JSON.stringify(Redacted.value(options.password))} }
jetstream { store_dir: ${JSON.stringify(options.dataDir)}${options.maxFileStore === undefined ? "" : `, max_file_store: ${options.maxFileStore}`} }
pid_file: ${JSON.stringify(`${options.dataDir}/nats-server.pid`)}
`

/** Does the server of this name answer? Another one may have taken the port in between. */
const answers = (url: string, name: string): Effect.Effect<boolean> =>
  Effect.promise(async () => {
    try {
      const connection = await connect({ ...connectionOptions(url, "objectlog"), reconnect: false, timeout: 500 })
      const found = connection.info?.server_name
      await connection.close()
      return found === name
    } catch {
      return false
    }
  })

const make = Effect.fnUntraced(function* (options: NatsServerOptions) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  // The server runs in "/": whatever is relative has to be resolved here.
  const command = path.resolve(yield* findNatsServer)
  const dataDir = path.resolve(options.dataDir)
  yield* claimFolder(dataDir, "nats-server")
  const password = yield* ownPassword(dataDir, "nats")
  const config = path.join(dataDir, "nats-server.conf")
  const leftover = yield* Effect.catch(fs.readFileString(path.join(dataDir, "nats-server.pid")), () =>
    Effect.succeed(""),
  )
  if (/^[1-9]\d*\s*$/.test(leftover)) yield* reapLeftover(Number(leftover), ["nats-server", config], "SIGTERM")

  const logFile = path.join(dataDir, "nats-server.log")
  const maxFileStore = options.maxFileStore ?? (yield* storeLimitOf(dataDir))
  const startAt = Effect.fnUntraced(function* (port: number) {
    const url = `nats://${user}:${Redacted.value(password)}@${host}:${port}`
    const name = `objectlog-${randomUUID()}`
    yield* writePrivate(config, configuration({ port, dataDir, name, password, maxFileStore }))
    const control = yield* startServer({
      name: "nats-server",
      command,
      args: ["-c", config],
      logFile,
      account: undefined,
      stopSignal: "SIGTERM",
      ready: () => answers(url, name),
    })
    return NatsServer.of({
      url,
      port,
      get pid() {
        return control.pid()
      },
      control,
      logFile,
    })
  })

  const attempts = options.portIsFixed === true ? 1 : portAttempts
  for (let attempt = 1; ; attempt++) {
    const port = yield* freePort(options.port, host)
    if (port === undefined || (options.portIsFixed === true && port !== options.port)) {
      const problem = port === undefined ? `no free port from ${options.port} on` : `port ${options.port} is in use`
      return yield* new ServerFailed({ server: "nats-server", problem })
    }
    // A scope for each attempt: a failed one is down before its port is looked at and its data is served again.
    const scope = yield* Scope.fork(yield* Effect.scope)
    const started = yield* Effect.result(Scope.provide(startAt(port), scope))
    if (started._tag === "Success") return started.success
    yield* Scope.close(scope, Exit.void)
    const lostPort = (yield* freePort(port, host)) !== port
    if (attempt === attempts || !lostPort) return yield* started.failure
  }
})

export class NatsServer extends Context.Service<
  NatsServer,
  {
    /** With the credentials; to be shown to the owner of the data only. */
    readonly url: string
    /** The port that it listens on: the wanted one, or the next that was free. */
    readonly port: number
    /** Of the present process, as `control` may have started it anew; -1 while it is stopped. */
    readonly pid: number
    /** Stops it with any signal, and starts it again on the same port and data. If it ends by itself it is started again. */
    readonly control: ServerControl
    /** Its own lines begin with the process id. */
    readonly logFile: string
  }
>()("objectlog/embedded/NatsServer") {
  static readonly layer = (options: NatsServerOptions) =>
    Layer.effect(NatsServer, make(options).pipe(Effect.catchTag("PlatformError", unusable(options.dataDir))))
}
