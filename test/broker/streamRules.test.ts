/**
 * What somebody else's stream or consumer may be: each setting on a real server, where it either stops the start with a line
 * that says why, or does no harm; those of newer servers as they would be told.
 */
import {
  AckPolicy,
  type ConsumerConfig,
  DeliverPolicy,
  DiscardPolicy,
  jetstream,
  type JetStreamClient,
  type JetStreamManager,
  jetstreamManager,
  PersistMode,
  ReplayPolicy,
  RetentionPolicy,
  StorageType,
  StoreCompression,
  type StreamConfig,
} from "@nats-io/jetstream"
import { assert, describe, it, layer } from "@effect/vitest"
import { Effect } from "effect"
import { consumerProblem } from "../../src/broker/consumerRules.ts"
import { noMargin, purgeDone } from "../../src/broker/maintain.ts"
import { provision, streamSubjects } from "../../src/broker/provision.ts"
import { isOursAlone, type StreamRole, streamProblem, streamRemarks } from "../../src/broker/streamRules.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { topics } from "./onServer.ts"

const subjects = streamSubjects(topics)

const seconds = (count: number) => count * 1e9

/** What a server of 2.9 can be told. */
const refused: ReadonlyArray<readonly [StreamRole, Partial<StreamConfig>, RegExp]> = [
  ["logs", { subjects: ["logs", "audit.>"] }, /^captures audit\.> beside logs, .* give logs a stream of its own/],
  ["logs", { subjects: ["*"] }, /^captures \* beside logs/],
  ["logs", { subjects: ["logs", "query"] }, /^captures query beside logs/],
  ["query", { subjects: [">"], no_ack: true }, /^captures > beside logs/],
  ["parked", { subjects: ["logs_parked.>", "other"] }, /^captures other beside logs_parked\.>/],
  ["logs", { sources: [{ name: "elsewhere" }] }, /^is fed from elsewhere, /],
  ["logs", { retention: RetentionPolicy.Workqueue }, /^expected retention by limits, got workqueue$/],
  ["response", { retention: RetentionPolicy.Interest }, /^expected retention by limits, got interest$/],
  ["logs", { storage: StorageType.Memory }, /^expected storage in files, got memory/],
  ["dead", { storage: StorageType.Memory }, /^expected storage in files, got memory/],
  ["query", { no_ack: true }, /^has no_ack set/],
  ["response", { no_ack: true }, /^has no_ack set/],
  ["logs", { max_msgs: 1 }, /^max_msgs 1 drops what is not done yet/],
  ["parked", { max_bytes: 4096 }, /^max_bytes 4096 drops/],
  ["dead", { max_msgs: 1_000 }, /^max_msgs 1000 drops/],
  ["logs", { max_msgs_per_subject: 1 }, /^max_msgs_per_subject 1 drops/],
  ["parked", { max_msgs_per_subject: 9, discard: DiscardPolicy.New }, /^max_msgs_per_subject 9 drops/],
  ["query", { max_age: seconds(60) }, /^max_age 60 s drops/],
  ["dead", { max_age: seconds(3_600) }, /^max_age 3600 s: .* a day at least/],
  ["response", { max_bytes: 4096, discard: DiscardPolicy.New }, /^has a limit and discard new/],
  ["response", { max_msg_size: 1_000 }, /^max_msg_size 1000: what a worker stores in the response stream/],
  ["dead", { max_msg_size: 1_000 }, /^max_msg_size 1000/],
  ["logs", { deny_purge: true }, /^has deny_purge set/],
  ["logs", { allow_rollup_hdrs: true }, /^has allow_rollup_hdrs set/],
  ["dead", { allow_rollup_hdrs: true }, /^has allow_rollup_hdrs set/],
]

const allowed: ReadonlyArray<readonly [StreamRole, Partial<StreamConfig>]> = [
  ["logs", { max_msgs: 10, discard: DiscardPolicy.New }],
  ["logs", { max_bytes: 4096, discard: DiscardPolicy.New }],
  ["logs", { max_msgs_per_subject: 9, discard: DiscardPolicy.New, discard_new_per_subject: true }],
  ["logs", { max_msg_size: 1_000, max_consumers: 5, deny_delete: true, duplicate_window: seconds(120) }],
  ["query", { discard: DiscardPolicy.New, republish: { src: "query", dest: "seen.query" } }],
  ["dead", { subjects: ["dead.>", "app.>"], max_age: seconds(30 * 86_400) }],
  ["response", { subjects: ["response", "response.>", "events"], storage: StorageType.Memory }],
  ["response", { max_msgs: 5, max_age: seconds(60), max_msgs_per_subject: 3, deny_purge: true }],
]

/** A stream that somebody made for a part. */
const made = (part: StreamRole, config: Partial<StreamConfig>) => ({
  name: "SOMEBODYS",
  subjects: [...subjects[part]],
  ...config,
})

const withServer = <A, E>(test: (jsm: JetStreamManager, js: JetStreamClient) => Effect.Effect<A, E>) =>
  Effect.gen(function* () {
    const { url } = yield* NatsServer
    const connection = yield* Effect.acquireRelease(
      Effect.promise(() => connectTo(url)),
      (open) => Effect.promise(() => open.close()),
    )
    const jsm = yield* Effect.promise(() => jetstreamManager(connection))
    for (const { config } of yield* Effect.promise(() => jsm.streams.list().next())) {
      yield* Effect.promise(() => jsm.streams.delete(config.name))
    }
    return yield* test(jsm, jetstream(connection))
  }).pipe(Effect.scoped)

layer(TestNats.layer, { excludeTestServices: true, timeout: "60 seconds" })("streams of somebody else", (it) => {
  for (const [part, config, expected] of refused) {
    it.effect(`${part} with ${JSON.stringify(config)} stops the start`, () =>
      withServer(
        Effect.fnUntraced(function* (jsm) {
          if (config.sources !== undefined) {
            yield* Effect.promise(() => jsm.streams.add({ name: "elsewhere", subjects: ["elsewhere"] }))
          }
          yield* Effect.promise(() => jsm.streams.add(made(part, config)))
          const error = yield* Effect.flip(provision(jsm, topics))
          assert.strictEqual(error._tag, "BrokerMisconfigured")
          assert.match(error.message, /^stream SOMEBODYS: /)
          assert.match(error.message.slice("stream SOMEBODYS: ".length), expected)
        }),
      ),
    )
  }

  for (const [part, config] of allowed) {
    it.effect(`${part} with ${JSON.stringify(config)} is used as it is`, () =>
      withServer(
        Effect.fnUntraced(function* (jsm) {
          yield* Effect.promise(() => jsm.streams.add(made(part, config)))
          assert.strictEqual((yield* provision(jsm, topics))[part].name, "SOMEBODYS")
        }),
      ),
    )
  }

  it.effect("a sealed stream stops the start", () =>
    withServer(
      Effect.fnUntraced(function* (jsm) {
        yield* Effect.promise(async () => {
          await jsm.streams.add(made("logs", {}))
          await jsm.streams.update("SOMEBODYS", { sealed: true } as Partial<StreamConfig>)
        })
        const error = yield* Effect.flip(provision(jsm, topics))
        assert.strictEqual(error.message, "stream SOMEBODYS: is sealed, so nothing can be stored in it")
      }),
    ),
  )

  it.effect("one that is changed later is not purged any more", () =>
    withServer(
      Effect.fnUntraced(function* (jsm, js) {
        const { logs } = yield* provision(jsm, topics)
        yield* Effect.promise(async () => {
          for (const payload of ["1", "2", "3"]) await js.publish("logs", payload)
          const done = await (await js.consumers.get(logs.name, "objectlog")).fetch({ max_messages: 3 })
          for await (const message of done) await message.ackAck()
          await jsm.streams.update(logs.name, { subjects: ["logs", "audit.>"] })
          await js.publish("audit.a", "somebody's")
        })
        const upkeep = purgeDone(jsm, topics, "logs", logs.name, noMargin, 0)
        const error = yield* Effect.flip(upkeep)
        assert.match(error.message, /^stream objectlog_logs: captures audit\.> beside logs/)
        const messages = Effect.promise(async () => (await jsm.streams.info(logs.name)).state.messages)
        assert.strictEqual(yield* messages, 4)
        yield* Effect.promise(() => jsm.streams.update(logs.name, { subjects: ["logs"] }))
        assert.strictEqual(yield* upkeep, 2)
      }),
    ),
  )

  // With nats-server 2.9 a purge makes such a consumer forget what is delivered and not acknowledged.
  it.effect("a consumer without a filter stops the start", () =>
    withServer(
      Effect.fnUntraced(function* (jsm) {
        yield* Effect.promise(async () => {
          await jsm.streams.add({ name: "objectlog_logs", subjects: ["logs"] })
          await jsm.consumers.add("objectlog_logs", {
            durable_name: "objectlog",
            ack_policy: AckPolicy.Explicit,
            max_ack_pending: -1,
          })
        })
        const error = yield* Effect.flip(provision(jsm, topics))
        assert.strictEqual(
          error.message,
          "stream objectlog_logs: consumer objectlog: expected the filter logs, got none",
        )
      }),
    ),
  )
})

/** As nats-server shows a stream of ours. */
const ours = (part: StreamRole): StreamConfig => ({
  name: `objectlog_${part}`,
  subjects: [...subjects[part]],
  retention: RetentionPolicy.Limits,
  storage: StorageType.File,
  discard: DiscardPolicy.Old,
  discard_new_per_subject: false,
  max_consumers: -1,
  max_msgs: -1,
  max_msgs_per_subject: -1,
  max_bytes: -1,
  max_age: 0,
  max_msg_size: -1,
  num_replicas: 1,
  duplicate_window: 100e6,
  sealed: false,
  deny_delete: false,
  deny_purge: false,
  allow_rollup_hdrs: false,
  allow_direct: false,
  mirror_direct: false,
  first_seq: 0,
  allow_msg_counter: false,
  persist_mode: PersistMode.Default,
})

describe("settings of newer servers", () => {
  const problems: ReadonlyArray<readonly [StreamRole, Partial<StreamConfig>, RegExp | undefined]> = [
    ["logs", {}, undefined],
    [
      "logs",
      { subject_transform: { src: "logs", dest: "other" } },
      /^stores messages on other subjects \(logs to other\)/,
    ],
    ["response", { subject_transform: { src: ">", dest: "x.>" } }, /^stores messages on other subjects/],
    ["query", { allow_msg_ttl: true }, /^has allow_msg_ttl set/],
    ["dead", { allow_msg_ttl: true }, undefined],
    ["dead", { allow_msg_counter: true }, /^is a counter/],
    ["parked", { allow_msg_schedules: true }, /^has allow_msg_schedules set/],
    ["logs", { persist_mode: PersistMode.Async }, /^expected persist_mode default, got async/],
    ["response", { persist_mode: PersistMode.Async }, undefined],
    ["logs", { consumer_limits: { inactive_threshold: 1 } }, /^has consumer_limits/],
    ["logs", { consumer_limits: {} }, undefined],
    ["logs", { allow_atomic: true, allow_batched: true, compression: StoreCompression.S2, first_seq: 7 }, undefined],
  ]
  for (const [part, config, expected] of problems) {
    it(`${part} with ${JSON.stringify(config)}`, () => {
      const problem = streamProblem(part, { ...ours(part), ...config }, subjects)
      if (expected === undefined) assert.isUndefined(problem)
      else assert.match(problem ?? "", expected)
    })
  }

  it("what an operator should know stops nobody", () => {
    assert.deepStrictEqual(streamRemarks("logs", ours("logs"), 1), [])
    assert.deepStrictEqual(streamRemarks("dead", { ...ours("dead"), duplicate_window: seconds(120) }, 3), [
      "has 1 of the 3 replicas asked for",
    ])
    assert.match(streamRemarks("logs", { ...ours("logs"), duplicate_window: seconds(120) }, 1)[0] ?? "", /within 120 s/)
  })

  it("old events give way only where the stream has nothing else", () => {
    const alone = (config: Partial<StreamConfig>) => isOursAlone({ ...ours("response"), ...config }, subjects.response)
    assert.isTrue(alone({}))
    assert.isFalse(alone({ subjects: ["response", "response.>", "events"] }))
    assert.isFalse(alone({ sources: [{ name: "elsewhere" }] }))
    assert.isFalse(alone({ deny_purge: true }))
  })
})

describe("consumers of somebody else", () => {
  const good: ConsumerConfig = {
    durable_name: "objectlog",
    ack_policy: AckPolicy.Explicit,
    deliver_policy: DeliverPolicy.All,
    replay_policy: ReplayPolicy.Instant,
    ack_wait: seconds(30),
    max_deliver: -1,
    max_ack_pending: 100_000,
    max_waiting: 512,
    filter_subject: "logs",
    num_replicas: 0,
  }
  const problems: ReadonlyArray<readonly [Partial<ConsumerConfig>, RegExp | undefined]> = [
    [{}, undefined],
    [{ max_ack_pending: -1, max_waiting: 64, ack_wait: seconds(60) }, undefined],
    [{ max_ack_pending: 10, max_batch: 100, max_expires: seconds(1), max_bytes: 1_000 }, undefined],
    [{ description: "d", metadata: {}, sample_freq: "100", num_replicas: 1 }, undefined],
    [{ pause_until: "2020-01-01T00:00:00Z" }, undefined],
    [{ deliver_subject: "push" }, /^expected a pull consumer/],
    [{ ack_policy: AckPolicy.None }, /^expected explicit acknowledgement, got none/],
    [{ deliver_policy: DeliverPolicy.New }, /^expected delivery of all messages, got new/],
    [{ max_deliver: 1 }, /^expected deliveries without limit, got 1/],
    [{ backoff: [seconds(1)] }, /^expected one ack_wait, got a backoff/],
    [{ ack_wait: seconds(0.1) }, /^expected ack_wait of 1 … 300 s, got 0\.1 s/],
    [{ ack_wait: seconds(3_600) }, /^expected ack_wait of 1 … 300 s, got 3600 s/],
    [{ filter_subject: "other" }, /^expected the filter logs, got other/],
    [{ filter_subjects: ["logs", "other"] }, /^expected the filter logs, got logs, other/],
    [{ filter_subject: undefined as never }, /^expected the filter logs, got none/],
    [{ headers_only: true }, /^expected whole messages/],
    [{ replay_policy: ReplayPolicy.Original }, /^expected instant replay/],
    [{ max_waiting: 1 }, /^expected max_waiting 64 at least, got 1/],
    [{ inactive_threshold: seconds(5) }, /^expected no inactive_threshold/],
    [{ mem_storage: true }, /^expected storage in files/],
    [{ priority_groups: ["a"] }, /^expected no priority_groups/],
    [{ pause_until: "2999-01-01T00:00:00Z" }, /^is paused until 2999/],
  ]
  for (const [config, expected] of problems) {
    it(JSON.stringify(config), () => {
      const problem = consumerProblem({ ...good, ...config }, "logs")
      if (expected === undefined) assert.isUndefined(problem)
      else assert.match(problem ?? "", expected)
    })
  }
})
