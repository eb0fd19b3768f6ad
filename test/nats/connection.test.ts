/** What a connection does when the server hangs, and which certificates it takes. */
import { connect } from "@nats-io/transport-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Result, Schedule } from "effect"
import { readFileSync } from "node:fs"
import { createServer, type Socket } from "node:net"
import { fileURLToPath } from "node:url"
import { getCACertificates, setDefaultCACertificates } from "node:tls"
import { watchConnection } from "../../src/nats/connection.ts"
import { connectionOptions, readServers, shownServers } from "../../src/nats/connectionOptions.ts"
import { ConfiguredNats } from "../embedded/ConfiguredNats.ts"

const until = (what: string, holds: () => boolean) =>
  Effect.sync(holds).pipe(
    Effect.repeat({ until: (is) => is, schedule: Schedule.spaced("10 millis") }),
    Effect.timeoutOrElse({ duration: "10 seconds", orElse: () => Effect.die(new Error(`expected: ${what}`)) }),
  )

/** A server that answers a login and then takes nothing more in. */
const hanging = Effect.acquireRelease(
  Effect.callback<{ readonly port: number; readonly sockets: Array<Socket>; readonly close: () => void }>((resume) => {
    const sockets: Array<Socket> = []
    const server = createServer((socket) => {
      sockets.push(socket)
      socket.on("error", () => undefined)
      socket.write('INFO {"server_id":"x","version":"2.9.10","max_payload":1048576,"headers":true,"proto":1}\r\n')
      socket.once("data", () => {
        socket.write("PONG\r\n")
        socket.pause()
      })
    }).listen(0, "127.0.0.1", () => {
      const address = server.address()
      const port = typeof address === "object" ? address!.port : 0
      resume(Effect.succeed({ port, sockets, close: () => server.close() }))
    })
  }),
  ({ close, sockets }) =>
    Effect.sync(() => {
      close()
      for (const socket of sockets) socket.destroy()
    }),
)

describe("a connection", () => {
  it.live("whose server hangs is made again, whatever was written to it and did not leave", () =>
    Effect.gen(function* () {
      const { port, sockets } = yield* hanging
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() =>
          connect({ ...connectionOptions(`127.0.0.1:${port}`, "test"), pingInterval: 100, reconnectTimeWait: 10 }),
        ),
        (made) => Effect.promise(() => made.close()),
      )
      const told: Array<string> = []
      const state = yield* watchConnection(connection, (text) => Effect.sync(() => void told.push(text)))
      for (let i = 0; i < 20; i++) connection.publish("x", new Uint8Array(1_000_000))
      yield* until("a second connection", () => sockets.length > 1 && state.connected && told.length > 1)
      assert.deepStrictEqual(told.slice(0, 2), [
        "the connection to the broker is lost; it is made again",
        "connected to the broker again",
      ])
      assert.isAbove(state.attempts, 0)
    }).pipe(Effect.scoped),
  )
})

const folder = fileURLToPath(new URL("tls", import.meta.url))

/** A server with one of the certificates, whose authority is trusted meanwhile. */
const withCertificate = (name: "address" | "name", test: (port: string) => Effect.Effect<void>) =>
  Effect.gen(function* () {
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        const before = getCACertificates("default")
        setDefaultCACertificates([...before, readFileSync(`${folder}/ca.pem`, "utf8")])
        return before
      }),
      (before) => Effect.sync(() => setDefaultCACertificates(before)),
    )
    const server = yield* ConfiguredNats
    yield* server.start(`tls: { cert_file: "${folder}/${name}.pem", key_file: "${folder}/${name}.key" }`)
    yield* test(new URL(server.url()).port)
  }).pipe(Effect.scoped, Effect.provide(ConfiguredNats.layer))

/** Connects and closes again; why that did not succeed. */
const attempt = (url: string) =>
  Effect.promise(async () => {
    try {
      await (await connect(connectionOptions(url, "test"))).close()
      return "connected"
    } catch (error) {
      return String(error)
    }
  })

describe("TLS", () => {
  it.live("to an address takes a certificate of that address, and none of localhost", () =>
    Effect.gen(function* () {
      yield* withCertificate("address", (port) =>
        Effect.gen(function* () {
          assert.strictEqual(yield* attempt(`tls://127.0.0.1:${port}`), "connected")
          assert.include(yield* attempt(`tls://localhost:${port}`), "localhost. is not cert's CN")
        }),
      )
      yield* withCertificate("name", (port) =>
        Effect.gen(function* () {
          assert.include(yield* attempt(`tls://127.0.0.1:${port}`), "IP: 127.0.0.1 is not in the cert's list")
          assert.strictEqual(yield* attempt(`tls://localhost:${port}`), "connected")
        }),
      )
    }),
  )
})

describe("a server list", () => {
  const problem = (list: string) =>
    Result.match(readServers(list), { onSuccess: () => undefined, onFailure: (at) => at })

  it("is servers and one login", () => {
    const { pass, servers, tls, token, user } = connectionOptions("a, nats://u%40:p%25@b:1 ,tls://[::1]:5/", "test")
    assert.deepStrictEqual([servers, user, pass, token], [["a", "b:1", "[::1]:5"], "u@", "p%", undefined])
    assert.isDefined(tls)
    assert.strictEqual(connectionOptions("nats://t%3A@a", "test").token, "t:")
    assert.isUndefined(connectionOptions("nats://u:p@a,nats://u:p@b", "test").tls)
    assert.strictEqual(shownServers("nats://u:p@a:1,b"), "a:1, b")
  })

  it("is refused where it says what would not be done", () => {
    for (const list of ["nats://50%@a", "nats://u:50%@a", "nats://%zz:p@a", "nats://u:%ff@a"]) {
      assert.deepInclude(problem(list), { index: 0 }, list)
      assert.match(problem(list)!.allowed, /% begins an escape/)
    }
    assert.deepStrictEqual(problem("nats://u:p@a,nats://u:q@b"), {
      index: 1,
      allowed: "the same user and password, or token, for all servers",
    })
    for (const list of ["", "a,", "http://a", "nats://a?tls=true", "nats://a/x", "a#b", "a:x", "nats://"]) {
      assert.isDefined(problem(list), list)
    }
  })
})
