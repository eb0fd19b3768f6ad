/** A real worker as an operator sees it: metrics, health, logs, and how it ends while something hangs. */
import { assert, layer } from "@effect/vitest"
import { Effect, Layer, Schedule } from "effect"
import { spawnSync } from "node:child_process"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { counters, gauges, histograms } from "../../src/observe/definitions.ts"
import { basePort, TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { idsOn, spawnWorker, startWorkerProcess, startWorkerWith } from "../service/service.ts"
import { appendBody, collectAnswers, ForeignClient, publishInSequence } from "../foreign/ForeignClient.ts"
import { readLog } from "../foreign/read.ts"
import { within } from "../foreign/within.ts"

const servers = ForeignClient.layer.pipe(Layer.provideMerge(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))))

const get = (url: string) =>
  Effect.promise(async () => {
    const response = await fetch(url)
    return { status: response.status, text: await response.text() }
  })

interface Readiness {
  readonly ready: boolean
  readonly reasons: ReadonlyArray<string>
  readonly shards: ReadonlyArray<{ readonly shard: string; readonly ok: boolean }>
}

const readiness = (url: string) =>
  Effect.map(get(`${url}/readyz`), ({ status, text }) => ({ status, ...(JSON.parse(text) as Readiness) }))

/** Asks again until it is so. */
const until = <A, E, R>(self: Effect.Effect<A, E, R>, holds: (value: A) => boolean, what: string) =>
  self.pipe(Effect.repeat({ until: holds, schedule: Schedule.spaced("50 millis") }), within(what, 15_000))

/** Whether `promtool` is there: `PROMTOOL`, or from the PATH. */
const promtool = process.env["PROMTOOL"] ?? "promtool"
const hasPromtool = spawnSync(promtool, ["--version"]).status === 0

/** Stops processes with their children as a hang does: nothing ends, nothing answers. Goes on when the scope is closed. */
const hung = (pid: number) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const children = spawnSync("pgrep", ["-P", String(pid)], { encoding: "utf8" }).stdout
      const pids = [pid, ...children.split("\n").filter(Boolean).map(Number)]
      for (const each of pids) process.kill(each, "SIGSTOP")
      return pids
    }),
    (pids) => Effect.sync(() => pids.forEach((each) => process.kill(each, "SIGCONT"))),
  )

const processNames = [
  "process_cpu_seconds_total",
  "process_resident_memory_bytes",
  "process_start_time_seconds",
  ...(process.platform === "linux" ? ["process_open_fds", "process_max_fds"] : []),
  "nodejs_heap_size_used_bytes",
  "nodejs_heap_size_total_bytes",
  "nodejs_external_memory_bytes",
  "nodejs_gc_duration_seconds",
  "nodejs_version_info",
  "objectlog_build_info",
  "objectlog_event_loop_delay_seconds",
]

/** Longer than anything takes that is not stuck; the time that an operator is promised. */
const endsWithinMillis = 10_000

/** Digits and words that must not appear in a label or a log. */
const id = 987_654_321
const secret = "disk 3 replaced"

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("a worker to operate", (it) => {
  let scraped = ""

  it.effect("has every metric, never an object id; is alive and ready; its log is JSON without what messages say", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const worker = yield* startWorkerWith({ LOG_LEVEL: "debug" })
      const answers = yield* collectAnswers(connection, "m-")
      yield* publishInSequence(connection, [
        ...Array.from({ length: 20 }, (_, i) => appendBody(id, "m-", `${secret} ${i}`)),
        `{"id":${id},"log":7,"request_id":"m-bad"}`,
      ])
      yield* answers.until(21, 15_000)
      yield* readLog(connection, id)
      const metrics = get(`${worker.url}/metrics`)
      // Counted a moment after the event was seen.
      const { status, text } = yield* until(
        metrics,
        (found) => found.text.includes(`objectlog_messages_total{subject="query",outcome="ok"} 1`),
        "the read is counted",
      )
      assert.strictEqual(status, 200)
      scraped = text

      const families = text.split("\n").flatMap((line) => (line.startsWith("# TYPE ") ? [line.split(" ")[2]!] : []))
      const defined = Object.keys({ ...counters, ...gauges, ...histograms }).map((name) => `objectlog_${name}`)
      // A reason of a retry is there when it occurs.
      const expected = [...defined, ...processNames].filter((name) => name !== "objectlog_retries_total")
      assert.sameMembers(families, expected)
      assert.notInclude(text, String(id))
      const lines = text.split("\n")
      for (const line of [
        `objectlog_messages_total{subject="append",outcome="ok"} 20`,
        `objectlog_messages_total{subject="append",outcome="invalid_message"} 1`,
        `objectlog_dead_letters_total{code="invalid_message"} 1`,
        `objectlog_append_delay_seconds_count 20`,
        `objectlog_query_delay_seconds_count 1`,
        `objectlog_shard_up{shard="shard-a"} 1`,
        `objectlog_lane_up{shard="shard-b"} 1`,
        `objectlog_pool_waiting{shard="shard-b",use="append"} 0`,
      ])
        assert.include(lines, line)

      assert.deepStrictEqual(yield* get(`${worker.url}/livez`), { status: 200, text: "ok\n" })
      const { ready, reasons, shards } = yield* readiness(worker.url)
      assert.deepStrictEqual([ready, reasons], [true, []])
      assert.deepStrictEqual(shards, [
        { shard: "shard-a", ok: true },
        { shard: "shard-b", ok: true },
      ])

      const floor = yield* until(
        metrics,
        (found) => /^objectlog_consumer_ack_floor\{subject="append"\} 21$/m.test(found.text),
        "the floor is seen",
      )
      assert.match(floor.text, /^objectlog_consumer_ack_pending\{subject="append"\} 0$/m)

      assert.strictEqual(yield* worker.stop("SIGTERM", endsWithinMillis), 0)
      const log = worker.output().split("\n").filter(Boolean)
      const [said, rest] = [log.filter((line) => !line.startsWith("{")), log.filter((line) => line.startsWith("{"))]
      assert.lengthOf(said, 1)
      const entries = rest.map((line) => JSON.parse(line) as Record<string, unknown>)
      for (const entry of entries) assert.containsAllKeys(entry, ["timestamp", "level", "message"])
      assert.isAtLeast(entries.filter(({ message }) => message === "append received").length, 21)
      assert.notInclude(worker.output(), secret)
    }),
  )

  it.effect.skipIf(!hasPromtool)("has metrics to which promtool does not object (Debian: package prometheus)", () =>
    Effect.sync(() => {
      assert.notStrictEqual(scraped, "", "the test before has scraped them")
      const { status, stderr, stdout } = spawnSync(promtool, ["check", "metrics"], { input: scraped, encoding: "utf8" })
      assert.deepStrictEqual({ status, stderr, stdout }, { status: 0, stderr: "", stdout: "" })
    }),
  )

  it.effect("says that it waits for the broker, is alive meanwhile, and can be stopped", () =>
    Effect.gen(function* () {
      const port = basePort + 40
      const worker = yield* spawnWorker({
        NATS_URL: `127.0.0.1:${basePort + 41}`,
        POSTGRES_IPS: `127.0.0.1:${basePort + 42}`,
        METRICS_PORT: String(port),
      })
      const url = `http://127.0.0.1:${port}`
      const up = yield* Effect.tryPromise(() => fetch(`${url}/livez`)).pipe(
        Effect.retry(Schedule.spaced("50 millis")),
        within("it listens", 15_000, worker.output),
      )
      assert.strictEqual(up.status, 200)
      const found = yield* readiness(url)
      assert.deepInclude(found, {
        status: 503,
        ready: false,
        reasons: ["starting: waits for the broker and the shards"],
      })
      assert.strictEqual(yield* worker.stop("SIGTERM", endsWithinMillis), 0)
    }),
  )

  it.effect("ends in time while a shard hangs; what it held is done by another when the shard is back", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const [shard] = (yield* PostgresServers).shards
      const ids = yield* idsOn("shard-a", 5_000, 100)
      const worker = yield* startWorkerProcess
      const answers = yield* collectAnswers(connection, "h-")
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* hung(shard!.pid)
          yield* publishInSequence(
            connection,
            ids.map((each) => appendBody(each, "h-", String(each))),
          )
          const { reasons, ready } = yield* until(
            readiness(worker.url),
            (found) => found.reasons.length > 0,
            "the shard is missed",
          )
          assert.deepStrictEqual([ready, reasons], [true, ["shard shard-a: timeout"]])
          assert.include((yield* get(`${worker.url}/metrics`)).text, `objectlog_shard_up{shard="shard-a"} 0`)
          assert.strictEqual((yield* get(`${worker.url}/livez`)).status, 200)
          assert.strictEqual(answers.byRequest.size, 0)
          assert.strictEqual(yield* worker.stop("SIGTERM", endsWithinMillis), 0)
        }),
      )
      yield* startWorkerProcess
      // Well below the 30 s after which the broker gives up on a delivery by itself.
      yield* answers.until(ids.length, 15_000)
    }),
  )

  it.effect("ends in time while the broker hangs, and at once by a second signal", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const nats = yield* NatsServer
      const [patient, impatient] = yield* Effect.all([startWorkerProcess, startWorkerProcess], {
        concurrency: "unbounded",
      })
      const answers = yield* collectAnswers(connection, "n-")
      const bodies = Array.from({ length: 2_000 }, (_, i) => appendBody(6_000 + (i % 50), "n-", String(i)))
      yield* publishInSequence(connection, bodies)
      yield* answers.until(1, 15_000)
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* hung(nats.pid)
          const ends = yield* Effect.all(
            [
              patient.stop("SIGTERM", endsWithinMillis),
              Effect.sync(() => process.kill(impatient.pid, "SIGTERM")).pipe(
                Effect.andThen(
                  until(
                    Effect.exit(
                      Effect.tryPromise(() => fetch(`${impatient.url}/readyz`).then((found) => found.text())),
                    ),
                    (found) => found._tag === "Failure" || found.value.includes("stopping"),
                    "it is stopping",
                  ),
                ),
                // Another one: the same within a second might be what npm passes on.
                Effect.andThen(impatient.stop("SIGINT", 2_000)),
              ),
            ],
            { concurrency: "unbounded" },
          )
          assert.deepStrictEqual(ends, [0, 130])
        }),
      )
    }),
  )
})
