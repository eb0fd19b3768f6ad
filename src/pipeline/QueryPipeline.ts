/**
 * The query pipeline: deliveries → decode → ring → pages from the shard → response events → ack.
 *
 * No more is pulled than there is room for. All shards share that room (`Shares`), so that one which hangs leaves some to the
 * others; and a shard that can't keep up has its surplus parked as soon as the others have nothing to do (`Patience`).
 *
 * A read that is interrupted (a worker killed, a shard lost) is delivered again and starts anew with page 0, perhaps while
 * the first worker still sends. Each page names its snapshot: those of one snapshot are the same whoever sends them, so the
 * broker drops repeated ones, and a client puts together those with the same one.
 */
import { Clock, Effect, FiberSet, Random, Result, Stream } from "effect"
import { Broker, type Delivery } from "../broker/Broker.ts"
import { decodeRead, type Refusal } from "../contract/Request.ts"
import { pageMaxBytes } from "../contract/limits.ts"
import { retryReason } from "../observe/definitions.ts"
import { Metrics } from "../observe/Metrics.ts"
import { watched } from "../observe/Parts.ts"
import { Tracing } from "../trace/Tracing.ts"
import { HashRing } from "../placement/HashRing.ts"
import type { ReadRejected, ShardUnavailable } from "../shard/ShardPool.ts"
import * as limits from "./limits.ts"
import { logDelivery, park, secondsSince } from "./outcome.ts"
import { Patience } from "./Patience.ts"
import { serveRead } from "./reading.ts"
import type { Read } from "./readPlan.ts"
import * as ReadQueue from "./ReadQueue.ts"
import { refuse } from "./Refusals.ts"
import { type Lease, Shares } from "./Shares.ts"
import type { Source } from "./Waiting.ts"
import type { WorkerOptions } from "./WorkerOptions.ts"

/** The reads of one shard in this worker. */
interface Shard {
  readonly name: string
  readonly queue: ReadQueue.ReadQueue
  readonly patience: Patience
  readonly activity: Activity
}

/** How often the reads of a shard got somewhere, and when they last did. */
interface Activity {
  moves: number
  movedAt: number
}

interface Admitted extends Read {
  readonly shard: Shard
}

const weightOf = ({ payload }: Delivery) => limits.readWaitingBytes + 2 * payload.byteLength

/** Serves reads until interrupted; what is under way then is handed back. */
export const runQueries = ({ responseTopic, debug }: WorkerOptions) =>
  Effect.gen(function* () {
    const broker = yield* Broker
    const ring = yield* HashRing
    const metrics = yield* Metrics
    const tracing = yield* Tracing
    const clock = yield* Clock.Clock
    const observeDelay = metrics.observer("query_delay_seconds", {})
    const countServed = metrics.counter("messages_total", { subject: "query", outcome: "ok" })
    const places = new Shares(limits.readsWaitingBytes, ring.shards.length)
    const memory = new Shares(limits.readsBytes, ring.shards.length)
    /** Everything that was delivered and is not settled. */
    const held = new Set<Delivery>()
    const running = yield* FiberSet.make<void, never>()
    const makeShard = Effect.fnUntraced(function* (name: string) {
      const activity: Activity = { moves: 0, movedAt: -Infinity }
      const moved = () => {
        activity.moves++
        activity.movedAt = clock.currentTimeMillisUnsafe()
      }
      yield* watched({
        name: `reads of ${name}`,
        subject: "query",
        held: () => Math.ceil(places.heldBy(name) / limits.readWaitingBytes),
        moves: () => activity.moves,
      })
      const shard: Shard = {
        name,
        queue: yield* ReadQueue.make(name, memory, moved),
        patience: new Patience(),
        activity,
      }
      return shard
    })
    const shards = new Map(
      yield* Effect.forEach(ring.shards, ({ name }) => Effect.map(makeShard(name), (shard) => [name, shard] as const)),
    )
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        for (const delivery of held) delivery.retry(0)
      }),
    )

    const handBack = Effect.fnUntraced(function* (delivery: Delivery, shard: string) {
      yield* metrics.count("handed_back_total", { shard })
      delivery.retry(limits.handBackDelay(delivery.deliveryCount, yield* Random.next))
    })

    /** Sets reads aside, so that they don't count as under way in the intake. What does not fit there is handed back. */
    const parkAll = Effect.fnUntraced(function* (shard: string, deliveries: ReadonlyArray<Delivery>) {
      const rest = yield* park("reads", shard, deliveries)
      yield* Effect.forEach(rest, (delivery) => handBack(delivery, shard), { discard: true })
    })

    /** What a lost shard holds: for a while it is handed back, then parked. */
    const unavailable = (read: Admitted, source: Source, error: ShardUnavailable) =>
      Effect.gen(function* () {
        const { delivery, shard } = read
        yield* metrics.count("retries_total", { part: "read", reason: retryReason(error.reason) })
        yield* Effect.logWarning(`${error.message}; the read is handed back`)
        if (source === "intake" && delivery.deliveryCount > limits.readHandBacks) {
          return yield* parkAll(shard.name, [delivery])
        }
        yield* handBack(delivery, shard.name)
      })

    const refuseRead = ({ delivery, request }: Admitted, code: Refusal["code"], message: string) =>
      refuse("query", delivery, { ...request, code, message })

    /** A read that fails by its own fault is tried some times, and then refused. */
    const rejected = (read: Admitted, error: ReadRejected) =>
      Effect.gen(function* () {
        const { delivery, shard } = read
        yield* metrics.count("retries_total", { part: "read", reason: retryReason(error.reason) })
        yield* Effect.logWarning(`${error.message}; attempt ${delivery.deliveryCount} of ${limits.readAttempts}`)
        if (delivery.deliveryCount < limits.readAttempts) return yield* handBack(delivery, shard.name)
        yield* refuseRead(read, "read_failed", `the read failed ${delivery.deliveryCount} times, with ${error.reason}`)
      })

    const serve = (read: Admitted, source: Source) => {
      const { delivery, shard } = read
      return serveRead(shard.queue, read).pipe(
        Effect.map(() => {
          delivery.ack()
          observeDelay(secondsSince(delivery, clock.currentTimeMillisUnsafe()))
          countServed()
        }),
        Effect.catchTags({
          ShardUnavailable: (error) => unavailable(read, source, error),
          ReadRejected: (error) => rejected(read, error),
          EntryTooLarge: (error) => refuseRead(read, "entry_too_large", error.message),
          PagesOutdated: () => Effect.sync(() => delivery.retry(0)),
        }),
      )
    }

    /** Serves a read, which has its place until then. */
    const run = (read: Admitted, source: Source, place: Lease) =>
      FiberSet.run(
        running,
        tracing.within(read.delivery, serve(read, source)).pipe(
          Effect.ensuring(
            Effect.sync(() => {
              read.shard.activity.moves++
              place.release()
              held.delete(read.delivery)
            }),
          ),
        ),
      )

    /** Gives a read its place, if there is one. */
    const start = (read: Admitted, source: Source) =>
      Effect.suspend(() => {
        const place = places.tryTake(read.shard.name, undefined, weightOf(read.delivery))
        return place === undefined ? Effect.succeed(false) : Effect.as(run(read, source, place), true)
      })

    /** Does a shard that is in use have nothing to do? */
    const othersAreIdle = (shard: Shard, now: number) =>
      Array.from(shards.values()).some(
        (other) =>
          other !== shard && places.heldBy(other.name) === 0 && now - other.activity.movedAt < limits.idleMillis,
      )

    /** Completes when a place was given back, or after a moment. */
    const someRelease = Effect.callback<void>((resume) => {
      const stop = places.onRelease(() => {
        stop()
        resume(Effect.void)
      })
      return Effect.sync(stop)
    }).pipe(Effect.timeoutOption(limits.placePollMillis))

    /**
     * Brings reads of one shard in that found no place at first. From the intake: once the shard has used up the patience of the
     * others, what is left is parked. What was parked waits.
     */
    const admitLate = Effect.fnUntraced(function* (shard: Shard, reads: ReadonlyArray<Admitted>, source: Source) {
      for (let next = 0; next < reads.length;) {
        if (yield* start(reads[next]!, source)) {
          next++
          continue
        }
        const before = clock.currentTimeMillisUnsafe()
        const isInTheWay = source === "intake" && othersAreIdle(shard, before)
        if (isInTheWay && shard.patience.left(before) <= 0) {
          const rest = reads.slice(next).map(({ delivery }) => delivery)
          yield* parkAll(shard.name, rest)
          for (const delivery of rest) held.delete(delivery)
          return
        }
        yield* someRelease
        if (isInTheWay) shard.patience.use(clock.currentTimeMillisUnsafe() - before)
      }
    })

    const admit = (source: Source) => (deliveries: ReadonlyArray<Delivery>) =>
      Effect.gen(function* () {
        const pageMax = pageMaxBytes(broker.maxPayload())
        const late = new Map<Shard, Array<Admitted>>()
        for (const delivery of deliveries) held.add(delivery)
        for (const delivery of deliveries) {
          tracing.receive(delivery)
          if (debug) yield* logDelivery("query", delivery)
          if (delivery.deliveryCount > 1) yield* metrics.count("redeliveries_total", { subject: "query" })
          const decoded = decodeRead(delivery.text, { maxPayload: broker.maxPayload(), responseTopic })
          if (Result.isFailure(decoded)) {
            held.delete(delivery)
            yield* refuse("query", delivery, decoded.failure)
            continue
          }
          const shard = shards.get(ring.shardOf(decoded.success.id))!
          const read = { delivery, request: decoded.success, pageMax, shard }
          // Behind those of its shard that found no place.
          const behind = late.get(shard)
          if (behind !== undefined) behind.push(read)
          else if (!(yield* start(read, source))) late.set(shard, [read])
        }
        // Side by side, so that a shard holds up the others only as long as its own patience lasts.
        yield* Effect.forEach(late, ([shard, reads]) => admitLate(shard, reads, source), {
          concurrency: "unbounded",
          discard: true,
        })
      })

    /** The broker hears of what is held, so that nobody else gets it. */
    const keepAlive = Effect.sync(() => {
      for (const delivery of held) delivery.working()
    }).pipe(Effect.delay(limits.keepAliveMillis), Effect.forever)

    const intake = Stream.runForEachArray(broker.queries, admit("intake"))
    // While a shard is down few of them are under way; so they are tried without asking whether it is.
    const parked = Array.from(shards.keys(), (name) =>
      Stream.runForEachArray(broker.parked("reads", name), admit("parked")),
    )
    yield* Effect.raceAllFirst([
      Effect.all([intake, ...parked], { concurrency: "unbounded", discard: true }),
      keepAlive,
      FiberSet.join(running),
      ...Array.from(shards.values(), ({ queue }) => queue.run),
    ])
  }).pipe(Effect.scoped)
