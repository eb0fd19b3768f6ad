/**
 * The append pipeline: deliveries → decode → ring → lane of the shard → event → ack.
 *
 * Knows nothing of NATS or SQL. The intake handles chunks, not messages: nothing here forks, awaits or allocates a span
 * for a single message.
 */
import { Effect, Fiber, Result, Stream } from "effect"
import { Broker, type Delivery } from "../broker/Broker.ts"
import { decodeAppend, messageIdProblem, type Limits, type Refusal } from "../contract/Request.ts"
import { Metrics } from "../observe/Metrics.ts"
import { Tracing } from "../trace/Tracing.ts"
import { HashRing } from "../placement/HashRing.ts"
import { Flow } from "./Flow.ts"
import * as Lane from "./Lane.ts"
import * as limits from "./limits.ts"
import { logDelivery } from "./outcome.ts"
import { Refusals } from "./Refusals.ts"
import { Shares } from "./Shares.ts"
import { type Offered, type Source, Work } from "./Waiting.ts"
import type { WorkerOptions } from "./WorkerOptions.ts"

/** Decodes a delivery with its headers; the refusal where it can't be served. */
const decode = (source: Source, delivery: Delivery, bounds: Limits): Result.Result<Work, Refusal> => {
  const decoded = decodeAppend(delivery.text, bounds)
  if (Result.isFailure(decoded)) return Result.fail(decoded.failure)
  const { id, log, replyTo, requestId } = decoded.success
  const messageId = delivery.header("Nats-Msg-Id") || undefined
  const problem = messageId === undefined ? undefined : messageIdProblem(messageId)
  if (problem !== undefined) return Result.fail({ id, replyTo, requestId, code: "invalid_message", message: problem })
  const { deliveryCount, seq, timestamp } = delivery
  const redelivered = deliveryCount > 1 || source === "parked"
  const entry = { id, timestamp, seq, log, messageId, redelivered }
  return Result.succeed(new Work(source, delivery, entry, decoded.success))
}

/** Runs until interrupted; then stops the intake, finishes or hands back what it holds, within `drainMillis`. */
export const runAppends = ({ responseTopic, debug }: WorkerOptions) =>
  Effect.gen(function* () {
    const broker = yield* Broker
    const ring = yield* HashRing
    const metrics = yield* Metrics
    const tracing = yield* Tracing
    const shared: Lane.Shared = {
      flow: new Flow(ring.shards.map(({ name }) => name)),
      memory: new Shares(limits.lanesBytes, 2 * ring.shards.length),
      parking: new Shares(limits.parkingBytes, ring.shards.length),
    }
    const lanes = new Map(
      yield* Effect.forEach(ring.shards, ({ name }) =>
        Effect.map(Lane.make(name, shared), (lane) => [name, lane] as const),
      ),
    )
    const all = [...lanes.values()]
    const refusals = yield* Refusals

    /** Brings what did not fit into full lanes to its place; hands it back if that is interrupted. */
    const admit = (source: Source, full: ReadonlyArray<readonly [Lane.Lane, Offered]>) => {
      const rest = () => full.flatMap(([, { works, next }]) => works.slice(next))
      const keepAlive = Effect.sync(() => {
        for (const work of rest()) {
          work.delivery.working()
          work.detach()
        }
      }).pipe(Effect.delay(limits.keepAliveMillis), Effect.forever)
      // Side by side, so that a full lane holds up the others once at most.
      return Effect.forEach(full, ([lane, offered]) => lane.admit(source, offered), {
        concurrency: "unbounded",
        discard: true,
      }).pipe(
        Effect.raceFirst(keepAlive),
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            for (const { delivery } of rest()) delivery.retry(0)
          }),
        ),
      )
    }

    const route = (source: Source) => (deliveries: ReadonlyArray<Delivery>) =>
      // Interruptible only where it waits, and where it is known what to hand back.
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function* () {
          const bounds: Limits = { maxPayload: broker.maxPayload(), responseTopic }
          const routed = new Map<string, Array<Work>>()
          const refused: Array<readonly [Delivery, Refusal]> = []
          let redelivered = 0
          for (const delivery of deliveries) {
            if (delivery.deliveryCount > 1) redelivered++
            tracing.receive(delivery)
            const work = decode(source, delivery, bounds)
            if (Result.isFailure(work)) {
              refused.push([delivery, work.failure])
              continue
            }
            const shard = ring.shardOf(work.success.entry.id)
            const works = routed.get(shard)
            if (works === undefined) routed.set(shard, [work.success])
            else works.push(work.success)
          }
          const full: Array<readonly [Lane.Lane, Offered]> = []
          for (const [shard, works] of routed) {
            const offered: Offered = { works, next: 0 }
            const lane = lanes.get(shard)!
            if (!lane.enqueue(source, offered)) full.push([lane, offered])
          }
          if (redelivered > 0) yield* metrics.count("redeliveries_total", { subject: "append" }, redelivered)
          if (full.length > 0) yield* restore(admit(source, full))
          if (debug) yield* Effect.forEach(deliveries, (delivery) => logDelivery("append", delivery), { discard: true })
          if (refused.length > 0) yield* restore(refusals.take("append", refused))
        }),
      )

    const working = yield* Effect.all(
      all.map((lane) => lane.run),
      { concurrency: "unbounded", discard: true },
    ).pipe(Effect.forkScoped)
    // Registered after the fork, so it runs first: the lanes still work while they are closed.
    yield* Effect.addFinalizer(() =>
      Effect.forEach(all, (lane) => lane.close, { concurrency: "unbounded", discard: true }),
    )
    const intake = Stream.runForEachArray(broker.appends, route("intake"))
    const retries = Stream.runForEachArray(broker.retries, route("parked"))
    // A lane whose shard is down pulls nothing of what is parked for it.
    const drain = (lane: Lane.Lane) =>
      lane.up.pipe(
        Effect.andThen(
          Effect.raceFirst(Stream.runForEachArray(broker.parked("appends", lane.shard), route("parked")), lane.down),
        ),
        Effect.forever,
      )
    const pulling = Effect.all([intake, retries, ...all.map(drain)], { concurrency: "unbounded", discard: true })
    yield* Effect.raceFirst(pulling, Fiber.join(working))
  }).pipe(Effect.scoped)
