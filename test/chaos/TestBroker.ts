/** The broker of a run: one nats-server, or a cluster of three on loopback, with a login for the workers and one for the run itself. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Context, Effect, FileSystem, Layer, Path, Schedule } from "effect"
import { readFileSync } from "node:fs"
import { freePort } from "../../src/embedded/freePort.ts"
import { findNatsServer } from "../../src/embedded/natsBinary.ts"
import { ServerFailed } from "../../src/embedded/serverProcess.ts"
import { type ServerControl, startServer } from "../../src/embedded/supervisor.ts"
import { temporary } from "../../bench/servers/privateServers.ts"
import { ports } from "./ports.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

export interface BrokerNode {
  readonly name: string
  readonly port: number
  readonly control: ServerControl
  readonly logFile: string
}

/** What the broker lets the workers do. */
export interface Access {
  readonly password: string
  /** Subjects on which they may not publish. */
  readonly denied: ReadonlyArray<string>
}

export const ordinaryAccess: Access = { password: "worker", denied: [] }

const host = "127.0.0.1"
const clusterSize = 3

/** So little that it can be filled within seconds, and so much that a run of ten minutes fits. */
const fileStoreBytes = 768 * 1024 ** 2

/** The login of the run itself. */
const ownLogin = { user: "run", pass: "run" }

interface Listening {
  readonly name: string
  readonly folder: string
  readonly port: number
  readonly routePort: number
}

const configuration = (node: Listening, all: ReadonlyArray<Listening>, { denied, password }: Access) => `
server_name: ${node.name}
listen: "${host}:${node.port}"
jetstream { store_dir: ${JSON.stringify(node.folder)}, max_file_store: ${fileStoreBytes} }
authorization {
  users: [
    { user: ${ownLogin.user}, password: ${ownLogin.pass} }
    { user: worker, password: ${JSON.stringify(password)}, permissions: { publish: { deny: ${JSON.stringify(denied)} } } }
  ]
}
${
  all.length === 1
    ? ""
    : `cluster {
  name: chaos
  listen: "${host}:${node.routePort}"
  # Clients must know the proxies' addresses only.
  no_advertise: true
  routes: [${all
    .filter((other) => other !== node)
    .map(({ routePort }) => `"nats://${host}:${routePort}"`)
    .join(", ")}]
}
`
}`

const answers = (port: number): Effect.Effect<boolean> =>
  Effect.promise(() =>
    connect({ servers: `${host}:${port}`, ...ownLogin, reconnect: false, timeout: 500 }).then(
      (connection) => connection.close().then(() => true),
      () => false,
    ),
  )

const hasLeader = (urls: string): Effect.Effect<boolean> =>
  Effect.promise(async () => {
    const connection = await connectTo(urls, { timeout: 1_000 })
    try {
      const manager = await jetstreamManager(connection, { checkAPI: false, timeout: 1_000 })
      await manager.getAccountInfo()
      return true
    } catch {
      return false
    } finally {
      await connection.close()
    }
  })

const reloads = (logFile: string) => readFileSync(logFile, "utf8").split("Reloaded server configuration").length

const make = Effect.fnUntraced(function* (size: number) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const command = yield* findNatsServer
  const folder = yield* temporary
  const all: Array<Listening> = []
  for (let i = 0; i < size; i++) {
    const port = yield* freePort((all.at(-1)?.port ?? ports.broker - 1) + 1, host)
    const routePort = yield* freePort((all.at(-1)?.routePort ?? ports.routes - 1) + 1, host)
    if (port === undefined || routePort === undefined) {
      return yield* new ServerFailed({ server: "nats-server", problem: "no free port for the broker" })
    }
    const name = `n${i + 1}`
    all.push({ name, port, routePort, folder: path.join(folder, name) })
  }
  const configFile = (node: Listening) => path.join(node.folder, "nats-server.conf")
  const write = (node: Listening, access: Access) =>
    Effect.orDie(fs.writeFileString(configFile(node), configuration(node, all, access)))
  const startNode = Effect.fnUntraced(function* (node: Listening) {
    yield* fs.makeDirectory(node.folder)
    yield* write(node, ordinaryAccess)
    const logFile = path.join(node.folder, "nats-server.log")
    const control = yield* startServer({
      name: `nats-server ${node.name}`,
      command,
      args: ["-c", configFile(node)],
      logFile,
      account: undefined,
      stopSignal: "SIGTERM",
      ready: () => answers(node.port),
    })
    return { name: node.name, port: node.port, logFile, control }
  })
  const nodes = yield* Effect.forEach(all, startNode, { concurrency: "unbounded" })
  const urlsOf = (user: string, pass: string) =>
    nodes.map(({ port }) => `nats://${user}:${pass}@${host}:${port}`).join(",")
  const urls = urlsOf(ownLogin.user, ownLogin.pass)
  yield* hasLeader(urls).pipe(
    Effect.repeat({ until: (found) => found, schedule: Schedule.spaced("100 millis") }),
    Effect.timeoutOrElse({
      duration: "30 seconds",
      orElse: () => Effect.fail(new ServerFailed({ server: "nats-server", problem: "no leader within 30 s" })),
    }),
  )
  const allow = Effect.fnUntraced(function* (access: Access) {
    yield* Effect.forEach(
      nodes,
      Effect.fnUntraced(function* ({ control, logFile }, index) {
        const before = reloads(logFile)
        yield* write(all[index]!, access)
        yield* Effect.sync(() => process.kill(control.pid(), "SIGHUP"))
        yield* Effect.sync(() => reloads(logFile) > before).pipe(
          Effect.repeat({ until: (done) => done, schedule: Schedule.spaced("20 millis") }),
          Effect.timeoutOrElse({
            duration: "10 seconds",
            orElse: () => Effect.die(new Error(`nats-server did not reload: see ${logFile}`)),
          }),
        )
      }),
      { discard: true },
    )
  })
  return TestBroker.of({ nodes, urls, workerUrls: urlsOf("worker", ordinaryAccess.password), replicas: size, allow })
})

export class TestBroker extends Context.Service<
  TestBroker,
  {
    readonly nodes: ReadonlyArray<BrokerNode>
    /** All of them, as a server list: as the run itself reaches them, which may do everything, and as the workers do. */
    readonly urls: string
    readonly workerUrls: string
    /** Of the streams. */
    readonly replicas: number
    /** Changes what the workers may do; all nodes must be up. */
    readonly allow: (access: Access) => Effect.Effect<void>
  }
>()("test/chaos/TestBroker") {
  static readonly layerSingle = Layer.effect(TestBroker, make(1)).pipe(Layer.provide(NodeServices.layer))
  static readonly layerCluster = Layer.effect(TestBroker, make(clusterSize)).pipe(Layer.provide(NodeServices.layer))
}
