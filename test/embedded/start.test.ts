/** `objectlog start` as a process of its own: what it leaves when it is killed, stopped, started twice or set up wrong. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, Result, Stream } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
import { chmodSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { Client } from "../../src/client/Client.ts"
import * as ObjectId from "../../src/contract/ObjectId.ts"
import { freePort } from "../../src/embedded/freePort.ts"
import { findNatsServer } from "../../src/embedded/natsBinary.ts"
import { basePort, temporary } from "../../bench/servers/privateServers.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const main = fileURLToPath(new URL("../../src/objectlog.js", import.meta.url))
const metricsBase = basePort + 30

const until = (what: string, condition: () => boolean, millis = 10_000) =>
  Effect.gen(function* () {
    while (!condition()) yield* Effect.sleep("10 millis")
  }).pipe(
    Effect.timeoutOrElse({
      duration: millis,
      orElse: () => Effect.die(new Error(`not within ${millis} ms: ${what}`)),
    }),
  )

/** What belongs to a variable of the surroundings must not reach the program. */
const foreign = /^(NATS_(?!SERVER$)|POSTGRES_|METRICS_|DATA_DIR|MODE$|LOG_|DEBUG|AUTO_|VITEST|NODE_(?!COMPILE_CACHE$))/

interface Run {
  readonly child: ChildProcess
  readonly out: () => string
  readonly err: () => string
  readonly code: () => number | null
  /** Has ended, and all that it wrote has been read. */
  readonly ended: () => boolean
}

const spawned = (
  args: ReadonlyArray<string>,
  variables: Record<string, string>,
  command: ReadonlyArray<string> = [process.execPath, main],
): Run => {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !foreign.test(name)))
  const [program, ...first] = command
  const child = spawn(program!, [...first, ...args], {
    cwd: root,
    env: { ...env, ...variables },
    stdio: ["ignore", "pipe", "pipe"],
    // A group of its own, as a terminal makes one.
    detached: true,
  })
  let [out, err, ended] = ["", "", false]
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text))
  child.stderr.setEncoding("utf8").on("data", (text: string) => (err += text))
  child.once("close", () => (ended = true))
  return { child, out: () => out, err: () => err, code: () => child.exitCode, ended: () => ended }
}

const run = Effect.fnUntraced(function* (args: ReadonlyArray<string>, variables: Record<string, string>) {
  const process = yield* Effect.acquireRelease(
    Effect.sync(() => spawned(args, variables)),
    ({ child }) => Effect.sync(() => void child.kill("SIGKILL")),
  )
  yield* until(`the end of objectlog ${args.join(" ")}`, process.ended, 15_000)
  return process
}, Effect.scoped)

const read = (file: string): string => {
  try {
    return readFileSync(file, "utf8")
  } catch {
    return ""
  }
}

const serverPids = (dataDir: string): ReadonlyArray<number> =>
  ["nats/nats-server.pid", "shard-a/postmaster.pid", "shard-b/postmaster.pid"]
    .map((file) => Number(read(`${dataDir}/${file}`).split("\n")[0]))
    .filter((pid) => pid > 0)

/** A process that has ended counts as gone, also while nobody has collected it. */
const isGone = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
  } catch {
    return true
  }
  return process.platform === "linux" && /^State:\s+Z/m.test(read(`/proc/${pid}/status`))
}

/** The command lines of what runs on a data folder, and of the reapers of these servers. */
const runningOn = (dataDir: string, servers: ReadonlyArray<number>): ReadonlyArray<string> =>
  process.platform !== "linux"
    ? []
    : readdirSync("/proc")
        .filter((name) => /^\d+$/.test(name))
        .map((pid) => read(`/proc/${pid}/cmdline`).split("\0").join(" ").trim())
        .filter(
          (line) =>
            line.includes(dataDir) ||
            servers.some((pid) => line.includes("objectlog-reaper") && line.endsWith(` ${pid}`)),
        )

/** What a terminal does: all that were started by a command, npm and the program, get the signal. */
const signalGroup = (child: ChildProcess, signal: NodeJS.Signals): void => {
  try {
    process.kill(-child.pid!, signal)
  } catch {
    // All of them are gone.
  }
}

/** `objectlog start`, once it says that it is ready; with the scope it and its servers are gone. */
const started = Effect.fnUntraced(function* (
  dataDir: string,
  more: Record<string, string> = {},
  command?: ReadonlyArray<string>,
) {
  const port = (yield* freePort(metricsBase, "127.0.0.1"))!
  const variables = { DATA_DIR: dataDir, METRICS_PORT: String(port), ...more }
  const process = yield* Effect.acquireRelease(
    Effect.sync(() => spawned(["start"], variables, command)),
    Effect.fnUntraced(function* ({ child, ended }) {
      const pids = serverPids(dataDir)
      signalGroup(child, "SIGKILL")
      yield* until("the end of start", ended)
      yield* until("the end of the servers", () => pids.every(isGone))
    }),
  )
  yield* until("ready", () => process.ended() || process.out().includes("Ctrl-C stops everything"), 20_000)
  assert.include(process.out(), "Ctrl-C stops everything", process.err())
  return process
})

describe("objectlog start", () => {
  it.live("killed, its servers end, and the next start finds every entry; a signal stops it in order", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const dataDir = yield* temporary
      const client = { DATA_DIR: dataDir }

      const first = yield* started(dataDir)
      const appended = yield* run(["append", "42", "disk 3 replaced"], client)
      assert.strictEqual(appended.code(), 0, appended.err())
      assert.match(appended.out(), /^position 1 /)
      assert.include((yield* run(["query", "42"], client)).out(), "disk 3 replaced")

      const address = yield* run(["url"], client)
      assert.match(address.out(), /^nats:\/\/objectlog:[\w-]{24}@127\.0\.0\.1:\d+\n$/)
      assert.include(first.out(), address.out().trim())
      const elsewhere = yield* run(["query", "42"], { NATS_URL: address.out().trim(), DATA_DIR: "/nowhere" })
      assert.include(elsewhere.out(), "disk 3 replaced", elsewhere.err())
      assert.strictEqual((yield* fs.stat(`${dataDir}/running.json`)).mode & 0o777, 0o600)

      const orphans = serverPids(dataDir)
      assert.lengthOf(orphans, 3)
      first.child.kill("SIGKILL")
      yield* until("the end of the servers", () => orphans.every(isGone))

      const second = yield* started(dataDir)
      const queried = yield* run(["query", "42"], client)
      assert.strictEqual(queried.code(), 0, queried.err())
      assert.include(queried.out(), "disk 3 replaced")

      const refused = yield* run(["start"], client)
      assert.strictEqual(refused.code(), 1)
      assert.strictEqual(
        refused.err(),
        `objectlog: ${dataDir} is in use by the process with pid ${second.child.pid}; stop that one, or use another DATA_DIR\n`,
      )
      assert.strictEqual((yield* run(["query", "42"], client)).code(), 0)

      const pids = serverPids(dataDir)
      second.child.kill("SIGINT")
      yield* until("the orderly end", second.ended, 5_000)
      assert.strictEqual(second.code(), 0, second.err())
      assert.isTrue(pids.every(isGone))
      yield* until("the end of the reapers", () => runningOn(dataDir, pids).length === 0, 1_000)
      const left = yield* fs.readDirectory(dataDir)
      assert.deepStrictEqual(
        left.filter((name) => name.startsWith("objectlog.owner") || name === "running.json"),
        [],
      )

      const stopped = yield* run(["query", "42"], client)
      assert.strictEqual(stopped.code(), 1)
      assert.match(stopped.err(), /^objectlog: .*no embedded server runs in .*\n$/)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("through npm a signal stops it in order: sent to npm alone, by Ctrl-C, or as the terminal is closed", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporary
      const stops: ReadonlyArray<readonly [string, (child: ChildProcess) => void]> = [
        ["SIGTERM to npm", (child) => child.kill("SIGTERM")],
        ["Ctrl-C", (child) => signalGroup(child, "SIGINT")],
        ["a closed terminal", (child) => signalGroup(child, "SIGHUP")],
      ]
      for (const [what, stop] of stops) {
        yield* Effect.scoped(
          Effect.gen(function* () {
            const { child, ended, err } = yield* started(dataDir, {}, ["npm"])
            const pids = serverPids(dataDir)
            assert.lengthOf(pids, 3)
            stop(child)
            yield* until(`the end by ${what}`, ended)
            assert.isTrue(pids.every(isGone), what)
            assert.notInclude(err(), "ended at once")
            assert.notInclude(readdirSync(dataDir), "objectlog.owner", "an orderly end gives the folder back")
          }),
        )
      }
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("a worker that npm runs ends with npm", () =>
    Effect.gen(function* () {
      const port = (yield* freePort(metricsBase, "127.0.0.1"))!
      const variables = { NATS_URL: "127.0.0.1:1", POSTGRES_IPS: "127.0.0.1:1", METRICS_PORT: String(port) }
      const { child, ended } = yield* Effect.acquireRelease(
        Effect.sync(() => spawned(["worker"], variables, ["npm", "run", "objectlog", "--"])),
        (process) => Effect.sync(() => signalGroup(process.child, "SIGKILL")),
      )
      let listens = false
      const ask = () =>
        void fetch(`http://127.0.0.1:${port}/livez`).then(
          () => (listens = true),
          () => undefined,
        )
      const asking = setInterval(ask, 50)
      yield* until("it listens", () => listens).pipe(Effect.ensuring(Effect.sync(() => clearInterval(asking))))
      child.kill("SIGTERM")
      // Its pipes are closed once all who hold them are gone.
      yield* until("the end", ended)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("a server that is killed is started again, and appends work again", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporary
      const service = yield* started(dataDir)
      const { nats: servers } = JSON.parse(read(`${dataDir}/running.json`)) as { nats: string }
      const client = Client.layer({ servers, logsTopic: "logs", queryTopic: "query" })
      const ids = ["1", "2", "3", "4"].map((text) => ObjectId.fromDecimal(text)!)
      /** To objects of both shards. */
      const appends = (log: string) =>
        Client.use((one) => Stream.runCollect(one.append(ids.map((id) => ({ id, log }))))).pipe(
          Effect.map((outcomes) => assert.isTrue(outcomes.every(Result.isSuccess), log)),
          Effect.provide(client),
        )
      yield* appends("before")
      for (const [server, file] of [
        ["nats-server", "nats/nats-server.pid"],
        ["postgres shard-a", "shard-a/postmaster.pid"],
      ] as const) {
        const pidOf = () => Number(read(`${dataDir}/${file}`).split("\n")[0])
        process.kill(pidOf(), "SIGKILL")
        yield* until(`${server} serves again`, () => service.err().includes(`${server}: serves again`))
        assert.include(service.err(), `${server}: ended by itself (SIGKILL)`)
        yield* appends(`after ${server}`)
      }
      const pages = yield* Client.use((one) => Stream.runCollect(one.query({ id: ids[0]! }))).pipe(
        Effect.provide(client),
      )
      assert.deepStrictEqual(
        pages.flatMap(({ entries }) => entries.map(({ log }) => log)),
        ["before", "after nats-server", "after postgres shard-a"],
      )
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("a server that can't be started again ends the program", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporary
      const program = `${dataDir}/program`
      writeFileSync(program, `#!/bin/sh\nexec ${yield* findNatsServer} "$@"\n`)
      chmodSync(program, 0o755)
      const service = yield* started(dataDir, { NATS_SERVER: program })
      rmSync(program)
      process.kill(serverPids(dataDir)[0]!, "SIGKILL")
      yield* until("the end", service.ended, 20_000)
      assert.strictEqual(service.code(), 1)
      const last = service.err().trim().split("\n").at(-1)!
      assert.match(last, /^objectlog: nats-server: .*does not stay up.*ENOENT.*nats-server\.log$/)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("of several that start on a folder with a void claim, one gets it", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const dataDir = yield* temporary
      yield* fs.writeFileString(`${dataDir}/objectlog.owner`, "4194304999 0\n")
      // No server is started: the one that gets the folder fails after the claim, or goes on until it is stopped.
      const variables = { DATA_DIR: dataDir, NATS_URL: "nats://127.0.0.1:1", POSTGRES_IPS: "127.0.0.1" }
      const all = yield* Effect.acquireRelease(
        Effect.sync(() => Array.from({ length: 4 }, () => spawned(["start"], variables))),
        (runs) => Effect.sync(() => runs.forEach(({ child }) => child.kill("SIGKILL"))),
      )
      yield* until("three ends", () => all.filter(({ ended }) => ended()).length >= 3)
      const refused = all.filter(({ err }) => err().includes("is in use by the process with pid"))
      assert.lengthOf(refused, 3, all.map(({ err }) => err()).join(""))
      assert.isTrue(refused.every(({ code }) => code() === 1))
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("a wrong setting is refused before anything is made", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const dataDir = `${yield* temporary}/data`
      const wrong = yield* run(["start"], { DATA_DIR: dataDir, POSTGRES_PORT: "abc" })
      assert.strictEqual(wrong.code(), 2)
      assert.match(wrong.err(), /^objectlog: POSTGRES_PORT.*abc.*\n$/)
      assert.strictEqual(wrong.out(), "")
      assert.isFalse(yield* fs.exists(dataDir))
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )
})
