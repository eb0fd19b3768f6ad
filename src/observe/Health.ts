/**
 * Whether this worker is alive and ready, for `/livez` and `/readyz`.
 *
 * Alive: the process makes progress, as the watchdog sees it. A broker or shard that is away is no reason to restart a
 * worker, as long as it tries to connect again. Ready: the broker is connected, has the streams and consumers and refuses
 * nothing that a worker needs, and at least one shard answers; a worker with one shard down serves the others.
 *
 * Broker and shards are asked every few seconds, not by whoever scrapes: an answer is at once, however many ask and
 * whatever hangs.
 */
import { Cause, Clock, Context, Effect, Exit, Layer } from "effect"
import {
  Broker,
  type BrokerState,
  BrokerUnavailable,
  type ConnectionView,
  type ConsumerState,
  operations,
} from "../broker/Broker.ts"
import { type ShardHealth, ShardPool, shardUses } from "../shard/ShardPool.ts"
import { retryParts, type Subject, subjects } from "./definitions.ts"
import { Metrics } from "./Metrics.ts"
import { type Part, Parts } from "./Parts.ts"
import { type Sight, Watchdog } from "./Watchdog.ts"

/** From one look to the next. */
const everyMillis = 5_000

/** How long the broker may take to tell its state. */
const askMillis = 2_000

const consumerOf = { append: "appends", query: "queries" } as const

export interface Readiness {
  readonly ready: boolean
  /** Why it is not ready, or what is wrong although it is. */
  readonly reasons: ReadonlyArray<string>
  readonly broker: { readonly ok: boolean }
  readonly shards: ReadonlyArray<ShardHealth>
}

export class Health extends Context.Service<
  Health,
  {
    /** What is wrong with the process; empty while it makes progress. */
    readonly stuck: Effect.Effect<ReadonlyArray<string>>
    readonly readiness: Effect.Effect<Readiness>
    /** Looks at broker, shards and parts while a worker runs; it is run after the first look. */
    readonly observing: <A, E, R>(
      worker: Effect.Effect<A, E, R>,
    ) => Effect.Effect<A, E, R | Broker | ShardPool | Metrics>
  }
>()("objectlog/observe/Health") {
  static readonly layer: Layer.Layer<Health> = Layer.sync(Health, () => make())
}

interface Observation {
  /** The broker's answer, or why there is none. */
  readonly broker: BrokerState | string
  readonly shards: ReadonlyArray<ShardHealth>
}

type Phase =
  | { readonly _tag: "Starting" }
  | {
      readonly _tag: "Serving"
      readonly watchdog: Watchdog
      readonly connection: () => ConnectionView
      observed: Observation
    }
  | { readonly _tag: "Stopping" }

const nowMillis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos / 1_000_000n))

const make = (): Health["Service"] => {
  let phase: Phase = { _tag: "Starting" }
  const observing = <A, E, R>(worker: Effect.Effect<A, E, R>) =>
    Effect.gen(function* () {
      const metrics = yield* Metrics
      const pool = yield* ShardPool
      const watchdog = new Watchdog()
      const look = makeLook(watchdog)
      const { connection } = yield* Broker
      const serving: Phase = { _tag: "Serving", watchdog, connection, observed: yield* look }
      phase = serving
      for (const { shard } of pool.usage()) {
        const usage = () => pool.usage().find((one) => one.shard === shard)
        yield* metrics.gauge("shard_up", { shard }, () =>
          Number(serving.observed.shards.find((one) => one.shard === shard)?.ok ?? false),
        )
        for (const use of shardUses) {
          yield* metrics.gauge("pool_connections_in_use", { shard, use }, () => usage()?.[use].inUse ?? 0)
          yield* metrics.gauge("pool_waiting", { shard, use }, () => usage()?.[use].waiting ?? 0)
        }
      }
      const read = (subject: Subject, field: keyof ConsumerState) => () => {
        const { broker } = serving.observed
        return typeof broker === "string" ? Number.NaN : (broker[consumerOf[subject]]?.[field] ?? Number.NaN)
      }
      yield* metrics.gauge("broker_storing", {}, () => Number(connection().isStoring))
      for (const subject of subjects) {
        yield* metrics.gauge("consumer_pending", { subject }, read(subject, "pending"))
        yield* metrics.gauge("consumer_ack_pending", { subject }, read(subject, "ackPending"))
        yield* metrics.gauge("consumer_ack_floor", { subject }, read(subject, "ackFloor"))
      }
      const looking = Effect.delay(look, everyMillis).pipe(
        Effect.tap((observed) => Effect.sync(() => (serving.observed = observed))),
        Effect.forever,
        // At once when both are interrupted, while the worker still takes its time to stop.
        Effect.ensuring(Effect.sync(() => (phase = { _tag: "Stopping" }))),
      )
      return yield* Effect.raceFirst(worker, looking)
    }).pipe(Effect.scoped)
  return Health.of({
    stuck: Effect.map(nowMillis, (now) => (phase._tag === "Serving" ? phase.watchdog.findings(now) : [])),
    readiness: Effect.sync(() => {
      if (phase._tag === "Serving") return judge(phase.observed, phase.connection())
      const reason = phase._tag === "Starting" ? "starting: waits for the broker and the shards" : "stopping"
      return { ready: false, reasons: [reason], broker: { ok: false }, shards: [] }
    }),
    observing,
  })
}

/** Asks broker and shards, and shows the parts to the watchdog. */
const makeLook = (watchdog: Watchdog) => {
  let counted: Partial<ConnectionView["violations"]> = {}
  return Effect.gen(function* () {
    const broker = yield* Broker
    const pool = yield* ShardPool
    const metrics = yield* Metrics
    const parts = yield* Parts
    const [answer, shards, failures] = yield* Effect.all(
      [Effect.exit(Effect.timeout(broker.state, askMillis)), pool.health, brokerFailures(metrics)],
      { concurrency: "unbounded" },
    )
    const { attempts, connected, isStoring, violations } = broker.connection()
    const observed: Observation = {
      broker: Exit.isSuccess(answer) ? answer.value : whyNone(answer.cause),
      shards,
    }
    for (const operation of operations) {
      const by = violations[operation] - (counted[operation] ?? 0)
      if (by > 0) yield* metrics.count("permission_violations_total", { operation }, by)
    }
    counted = { ...violations }
    const sights = Array.from(parts, ({ held, moves, name }): Sight => ({
      name,
      held: held(),
      moves: moves() + failures,
    }))
    if (Exit.isSuccess(answer)) sights.push(...intakes(answer.value, parts, failures))
    // Who does not even try to connect again waits for nothing.
    sights.push({ name: "connection to the broker", held: connected ? 0 : 1, moves: attempts, excusable: false })
    const away = !connected || !isStoring || Exit.isFailure(answer) || answer.value.problems.length > 0
    const now = yield* nowMillis
    watchdog.look(sights, now, now + everyMillis + askMillis, away)
    return observed
  })
}

/** Why the broker did not tell its state. */
const whyNone = (cause: Cause.Cause<BrokerUnavailable | Cause.TimeoutError>): string => {
  const error = Cause.squash(cause)
  return error instanceof BrokerUnavailable ? error.message : "broker: does not answer"
}

/** Attempts that the broker did not confirm. Who repeats one is waiting for the broker, and not stuck. */
const brokerFailures = (metrics: Metrics["Service"]) =>
  Effect.map(
    Effect.forEach(retryParts, (part) => metrics.value("retries_total", { part, reason: "publish" })),
    (counts) => counts.reduce((sum, count) => sum + count, 0),
  )

/**
 * The ways into this worker as the watchdog sees them.
 *
 * A consumer is stuck when requests wait in the broker and none is delivered to whichever worker. Requests under way count
 * only when nobody asks for more, since another worker may hold them for as long as a shard is down. An intake is stuck
 * when nobody takes what has arrived here; that the broker delivers the same again is no progress. Both are excused while
 * the parts behind them move: they may be full.
 */
const intakes = (state: BrokerState, parts: Iterable<Part>, failures: number): ReadonlyArray<Sight> =>
  subjects.flatMap((subject) => {
    const consumer = state[consumerOf[subject]]
    if (consumer === undefined) return []
    const { ackFloor, ackPending, buffered, delivered, pending, pulls, taken } = consumer
    let moves = taken + failures
    for (const part of parts) if (part.subject === subject) moves += part.moves()
    const waiting = pending > 0 ? pending : pulls === 0 ? ackPending : 0
    return [
      { name: `consumer of ${subject} requests`, held: waiting, moves: moves + delivered + ackFloor },
      { name: `intake of ${subject} requests`, held: buffered, moves },
    ]
  })

const judge = ({ broker, shards }: Observation, { connected, troubles }: ConnectionView): Readiness => {
  const disabling: Array<string> = []
  const others: Array<string> = []
  if (!connected) disabling.push("broker: not connected")
  else if (typeof broker === "string") disabling.push(broker)
  else disabling.push(...broker.problems.map((problem) => `broker: ${problem}`))
  for (const trouble of troubles) (trouble.disabling ? disabling : others).push(`broker: ${trouble.text}`)
  for (const { ok, reason, shard } of shards) {
    if (!ok) others.push(`shard ${shard}: ${reason ?? "does not answer"}`)
  }
  const brokerOk = disabling.length === 0
  return {
    ready: brokerOk && shards.some(({ ok }) => ok),
    // The state of the broker and what the connection met may say the same.
    reasons: [...new Set([...disabling, ...others])],
    broker: { ok: brokerOk },
    shards,
  }
}
