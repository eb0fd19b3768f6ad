import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Context, Effect, FileSystem, Layer, Scope } from "effect"
import { existsSync, writeFileSync } from "node:fs"
import { type AddressInfo, createServer, type Server } from "node:net"
import { NatsServer, type NatsServerOptions } from "../../src/embedded/NatsServer.ts"
import { findNatsServer } from "../../src/embedded/natsBinary.ts"
import { inspect } from "../../src/embedded/reaper.ts"
import { basePort, temporary, TestNats } from "../../bench/servers/privateServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const port = basePort + 30

/** Starts a server in the scope of the caller. */
const start = (options: NatsServerOptions) =>
  Effect.map(Layer.build(Layer.fresh(NatsServer.layer(options))), (context) => Context.get(context, NatsServer))

const connected = (url: string): Effect.Effect<NatsConnection, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.promise(() => connectTo(url)),
    (connection) => Effect.promise(() => connection.close()),
  )

const storedMessages = (url: string) =>
  Effect.gen(function* () {
    const connection = yield* connected(url)
    const manager = yield* Effect.promise(() => jetstreamManager(connection))
    return (yield* Effect.promise(() => manager.streams.info("kept"))).state.messages
  }).pipe(Effect.scoped)

const storeOne = (url: string) =>
  Effect.gen(function* () {
    const connection = yield* connected(url)
    const manager = yield* Effect.promise(() => jetstreamManager(connection))
    yield* Effect.promise(() => manager.streams.add({ name: "kept", subjects: ["kept"] }))
    yield* Effect.promise(() => jetstream(connection).publish("kept", "one"))
  }).pipe(Effect.scoped)

/** A port that somebody listens on. */
const occupied = Effect.map(
  Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      const server = createServer().listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void))),
  ),
  (server) => (server.address() as AddressInfo).port,
)

/** Environment variables for the duration of the scope. */
const environment = (changes: Record<string, string>) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const before = Object.keys(changes).map((name) => [name, process.env[name]] as const)
      Object.assign(process.env, changes)
      return before
    }),
    (before) =>
      Effect.sync(() => {
        for (const [name, value] of before) {
          if (value === undefined) delete process.env[name]
          else process.env[name] = value
        }
      }),
  )

const systemHasServer = ["/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin", "/opt/homebrew/bin"].some(
  (folder) => existsSync(`${folder}/nats-server`),
)

describe("NatsServer", () => {
  it.live("answers, and is gone with its scope", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { pid, url } = Context.get(yield* Layer.buildWithScope(TestNats.layer, scope), NatsServer)
      const connection = yield* connected(url)
      assert.isTrue(connection.info!.jetstream)
      yield* Effect.promise(() => connection.close())
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      assert.isUndefined(yield* inspect(pid))
    }),
  )

  it.live("finds its data again after a stop and after a kill", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporary
      yield* Effect.scoped(Effect.flatMap(start({ dataDir, port }), ({ url }) => storeOne(url)))
      const nats = yield* start({ dataDir, port })
      assert.strictEqual(yield* storedMessages(nats.url), 1)
      const before = nats.pid
      yield* nats.control.stop("SIGKILL")
      assert.strictEqual(nats.pid, -1)
      yield* nats.control.start
      assert.notStrictEqual(nats.pid, before)
      assert.strictEqual(yield* storedMessages(nats.url), 1)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live("is for who may read its password: nobody else on this machine", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const dataDir = yield* temporary
      // As an earlier version left it, open for everybody.
      yield* fs.writeFileString(`${dataDir}/nats-server.conf`, "", { mode: 0o644 })
      const before = yield* Effect.scoped(Effect.map(start({ dataDir, port }), ({ url }) => url))
      const nats = yield* start({ dataDir, port })
      assert.strictEqual(new URL(nats.url).password, new URL(before).password)
      const stranger = yield* Effect.promise(() => connect({ servers: `127.0.0.1:${nats.port}` }).catch(String))
      assert.include(stranger, "Authorization Violation")
      yield* connected(nats.url)
      for (const file of ["nats.password", "nats-server.conf"]) {
        assert.strictEqual((yield* fs.stat(`${dataDir}/${file}`)).mode & 0o777, 0o600, file)
      }
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live("takes the next free port, unless the port is fixed", () =>
    Effect.gen(function* () {
      const taken = yield* occupied
      const dataDir = yield* temporary
      const error = yield* Effect.flip(Effect.scoped(start({ dataDir, port: taken, portIsFixed: true })))
      assert.strictEqual(error._tag, "ServerFailed")
      assert.include(error.message, `port ${taken} is in use`)
      const nats = yield* start({ dataDir, port: taken })
      assert.isAbove(nats.port, taken)
      yield* connected(nats.url)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live("leaves the folder of a living parent alone", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporary
      const nats = yield* start({ dataDir, port })
      const error = yield* Effect.flip(Effect.scoped(start({ dataDir, port })))
      assert.strictEqual(error._tag, "FolderInUse")
      assert.include(error.message, dataDir)
      assert.include(error.message, String(process.pid))
      yield* connected(nats.url)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live("a claim and a pid file whose pid now belongs to another process don't hinder", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const dataDir = yield* temporary
      yield* fs.writeFileString(`${dataDir}/nats-server.owner`, `${process.pid} 1\n`)
      yield* fs.writeFileString(`${dataDir}/nats-server.pid`, String(process.pid))
      yield* connected((yield* start({ dataDir, port })).url)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live("says what to install when NATS_SERVER names nothing", () =>
    Effect.gen(function* () {
      yield* environment({ NATS_SERVER: "/nowhere/nats-server" })
      const error = yield* Effect.flip(start({ dataDir: yield* temporary, port }))
      assert.strictEqual(error._tag, "NatsServerMissing")
      for (const part of ["/nowhere/nats-server", "apt-get install", "brew install", "winget install", "NATS_SERVER"]) {
        assert.include(error.message, part)
      }
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(systemHasServer || process.getuid?.() !== 0)("does not run what somebody else put in the cache", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const empty = yield* temporary
      yield* fs.chmod(empty, 0o1777)
      yield* fs.makeDirectory(`${empty}/objectlog`)
      yield* fs.symlink(yield* findNatsServer, `${empty}/objectlog/nats-server`)
      yield* fs.chown(`${empty}/objectlog`, 12_345, 12_345)
      yield* environment({ NATS_SERVER: "", PATH: empty, XDG_CACHE_HOME: empty })
      const error = yield* Effect.flip(start({ dataDir: yield* temporary, port }))
      assert.strictEqual(error._tag, "ForeignEntry")
      assert.include(error.message, `${empty}/objectlog: belongs to the user 12345`)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(systemHasServer)("says so too when it is nowhere and can't be fetched", () =>
    Effect.gen(function* () {
      const empty = yield* temporary
      yield* environment({ NATS_SERVER: "", PATH: empty, XDG_CACHE_HOME: `${empty}/cache` })
      const error = yield* Effect.flip(start({ dataDir: yield* temporary, port }))
      assert.strictEqual(error._tag, "NatsServerMissing")
      assert.include(error.message, "apt-get can't get Debian's package")
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(systemHasServer)("says why it has no place for one", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      yield* Effect.sync(() => writeFileSync(`${folder}/file`, ""))
      for (const [home, cache, problem] of [
        [folder, `${folder}/file`, `${folder}/file/objectlog can't be used: not a directory (ENOTDIR)`],
        [`${folder}/missing`, "", "there is no home folder to unpack Debian's package in"],
        ["", "", "there is no home folder to unpack Debian's package in"],
      ] as const) {
        const error = yield* Effect.scoped(
          Effect.gen(function* () {
            yield* environment({ NATS_SERVER: "", PATH: folder, HOME: home, XDG_CACHE_HOME: cache })
            return yield* Effect.flip(start({ dataDir: yield* temporary, port }))
          }),
        )
        assert.include(error.message, `${problem} (set XDG_CACHE_HOME to a folder that can be written)`)
        assert.include(error.message, "set NATS_SERVER")
      }
    }).pipe(Effect.provide(NodeServices.layer)),
  )
})
