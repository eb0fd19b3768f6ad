/** The broker of a run: one nats-server, or a cluster of three on loopback. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Context, Effect, FileSystem, Layer, Path, Schedule } from "effect"
import { freePort } from "../../src/embedded/freePort.ts"
import { findNatsServer } from "../../src/embedded/natsBinary.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { ServerFailed } from "../../src/embedded/serverProcess.ts"
import { type ServerControl, startServer } from "../../src/embedded/supervisor.ts"
import { temporary } from "../embedded/testServers.ts"
import { ports } from "./ports.ts"

export interface BrokerNode {
  readonly name: string
  readonly port: number
  readonly control: ServerControl
  readonly logFile: string
}

const host = "127.0.0.1"
const clusterSize = 3

const configuration = (node: {
  readonly name: string
  readonly port: number
  readonly routePort: number
  readonly routes: ReadonlyArray<number>
  readonly folder: string
}) => `server_name: ${node.name}
listen: "${host}:${node.port}"
jetstream { store_dir: ${JSON.stringify(node.folder)} }
cluster {
  name: chaos
  listen: "${host}:${node.routePort}"
  # Clients must know the proxies' addresses only.
  no_advertise: true
  routes: [${node.routes.map((port) => `"nats://${host}:${port}"`).join(", ")}]
}
`

const answers = (port: number): Effect.Effect<boolean> =>
  Effect.promise(() =>
    connect({ servers: `${host}:${port}`, reconnect: false, timeout: 500 }).then(
      (connection) => connection.close().then(() => true),
      () => false,
    ),
  )

const hasLeader = (urls: string): Effect.Effect<boolean> =>
  Effect.promise(async () => {
    const connection = await connect({ servers: urls.split(","), timeout: 1_000 })
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

const cluster = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const command = yield* findNatsServer
  const folder = yield* temporary
  const listen: Array<{ readonly port: number; readonly routePort: number }> = []
  for (let i = 0; i < clusterSize; i++) {
    const port = yield* freePort((listen.at(-1)?.port ?? ports.broker - 1) + 1, host)
    const routePort = yield* freePort((listen.at(-1)?.routePort ?? ports.routes - 1) + 1, host)
    if (port === undefined || routePort === undefined) {
      return yield* new ServerFailed({ server: "nats-server", problem: "no free port for the cluster" })
    }
    listen.push({ port, routePort })
  }
  const startNode = Effect.fnUntraced(function* (index: number) {
    const { port, routePort } = listen[index]!
    const name = `n${index + 1}`
    const data = path.join(folder, name)
    yield* fs.makeDirectory(data)
    const config = path.join(data, "nats-server.conf")
    const routes = listen.map((other) => other.routePort).filter((other) => other !== routePort)
    yield* fs.writeFileString(config, configuration({ name, port, routePort, routes, folder: data }))
    const logFile = path.join(data, "nats-server.log")
    const control = yield* startServer({
      name: `nats-server ${name}`,
      command,
      args: ["-c", config],
      logFile,
      account: undefined,
      stopSignal: "SIGTERM",
      ready: () => answers(port),
    })
    return { name, port, logFile, control }
  })
  const nodes = yield* Effect.forEach(listen.keys(), startNode, { concurrency: "unbounded" })
  const urls = nodes.map(({ port }) => `nats://${host}:${port}`).join(",")
  yield* hasLeader(urls).pipe(
    Effect.repeat({ until: (found) => found, schedule: Schedule.spaced("100 millis") }),
    Effect.timeoutOrElse({
      duration: "30 seconds",
      orElse: () => Effect.fail(new ServerFailed({ server: "nats cluster", problem: "no leader within 30 s" })),
    }),
  )
  return TestBroker.of({ nodes, urls, replicas: clusterSize })
})

const single = Effect.gen(function* () {
  const dataDir = yield* temporary
  const path = yield* Path.Path
  const context = yield* Layer.build(NatsServer.layer({ dataDir, port: ports.broker }))
  const server = Context.get(context, NatsServer)
  const node = {
    name: "n1",
    port: server.port,
    control: server.control,
    logFile: path.join(dataDir, "nats-server.log"),
  }
  return TestBroker.of({ nodes: [node], urls: server.url, replicas: 1 })
})

export class TestBroker extends Context.Service<
  TestBroker,
  {
    readonly nodes: ReadonlyArray<BrokerNode>
    /** All of them, as a server list. */
    readonly urls: string
    /** Of the streams. */
    readonly replicas: number
  }
>()("test/chaos/TestBroker") {
  static readonly layerSingle = Layer.effect(TestBroker, single).pipe(Layer.provide(NodeServices.layer))
  static readonly layerCluster = Layer.effect(TestBroker, cluster).pipe(Layer.provide(NodeServices.layer))
}
