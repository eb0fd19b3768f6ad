/**
 * The append pipeline: deliveries → decode → ring → lane of the shard → event → ack.
 *
 * Knows nothing of NATS or SQL. The intake handles chunks, not messages: nothing here forks, awaits or allocates a span
 * for a single message.
 */
import { Effect, Fiber, Queue, Result, Stream } from "effect"
import { Broker, type Delivery } from "../broker/Broker.ts"
import { decodeAppend, messageIdProblem, type AppendRequest, type Limits, type Refusal } from "../domain/Protocol.ts"
import { Metrics } from "../observe/Metrics.ts"
import { HashRing } from "../placement/HashRing.ts"
import * as Lane from "./Lane.ts"
import * as limits from "./limits.ts"
import { logDelivery, refuse } from "./outcome.ts"
import type { WorkerOptions } from "./Worker.ts"

/** Decodes a delivery with its headers; the refusal where it can't be served. */
const decode = (delivery: Delivery, bounds: Limits): Result.Result<Lane.Work, Refusal> => {
  const decoded = decodeAppend(delivery.payload, bounds)
  if (Result.isFailure(decoded)) return Result.fail(decoded.failure)
  const request: AppendRequest = decoded.success
  const messageId = delivery.header("Nats-Msg-Id") || undefined
  const problem = messageId === undefined ? undefined : messageIdProblem(messageId)
  if (problem !== undefined) return Result.fail({ ...request, code: "invalid_message", message: problem })
  const { seq, timestamp } = delivery
  return Result.succeed({ delivery, request, entry: { id: request.id, timestamp, seq, log: request.log, messageId } })
}

/** Runs until interrupted; then stops the intake, finishes or hands back what it holds, within `drainMillis`. */
export const runAppends = ({ responseTopic, debug }: WorkerOptions) =>
  Effect.gen(function* () {
    const broker = yield* Broker
    const ring = yield* HashRing
    const metrics = yield* Metrics
    const lanes = yield* Effect.forEach(ring.shards, (shard, index) => Lane.make(index, shard.name))
    const refused = yield* Queue.bounded<readonly [Delivery, Refusal]>(limits.refusalsWaiting)
    /** What is to be refused and is not settled. */
    const refusing = new Set<Delivery>()

    const route = Effect.fnUntraced(function* (deliveries: ReadonlyArray<Delivery>) {
      const bounds: Limits = { maxPayload: broker.maxPayload(), responseTopic }
      const routed: Array<Array<Lane.Work>> = lanes.map(() => [])
      const refusals: Array<readonly [Delivery, Refusal]> = []
      let redelivered = 0
      for (const delivery of deliveries) {
        if (delivery.deliveryCount > 1) redelivered++
        const work = decode(delivery, bounds)
        if (Result.isSuccess(work)) routed[ring.shardOf(work.success.entry.id)]!.push(work.success)
        else refusals.push([delivery, work.failure])
      }
      for (const [delivery] of refusals) refusing.add(delivery)
      if (redelivered > 0) yield* metrics.count("redeliveries_total", { subject: "append" }, redelivered)
      // Side by side, so that a full lane holds up the others once at most. Not interrupted, which would leave what is in
      // no lane yet to ack_wait; a lane takes it or hands it back within `laneFullWaitMillis`.
      yield* Effect.forEach(
        lanes,
        (lane, index) => (routed[index]!.length > 0 ? lane.offer(routed[index]!) : Effect.void),
        {
          concurrency: "unbounded",
          discard: true,
        },
      ).pipe(Effect.uninterruptible)
      if (debug) yield* Effect.forEach(deliveries, (delivery) => logDelivery("append", delivery), { discard: true })
      // Unbounded while the broker is away, so it may be interrupted: `refusing` knows them.
      yield* Effect.interruptible(Queue.offerAll(refused, refusals))
    })

    // Registered before the fork, so it runs last: what is not refused by then is handed back.
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        for (const delivery of refusing) delivery.retry(0)
      }),
    )

    const working = yield* Effect.all(
      [
        ...lanes.map((lane) => lane.run),
        Stream.fromQueue(refused).pipe(
          Stream.mapEffect(
            ([delivery, refusal]) =>
              Effect.andThen(
                refuse("append", delivery, refusal),
                Effect.sync(() => refusing.delete(delivery)),
              ),
            { concurrency: limits.refusalsAtOnce, unordered: true },
          ),
          Stream.runDrain,
        ),
      ],
      { concurrency: "unbounded", discard: true },
    ).pipe(Effect.forkScoped)
    // Registered after the fork, so it runs first: the lanes still work while they are closed.
    yield* Effect.addFinalizer(() =>
      Effect.forEach(lanes, (lane) => lane.close, { concurrency: "unbounded", discard: true }),
    )
    // A chunk that was taken is routed to its end, which is bounded: an interrupted one would wait for `ack_wait`.
    const intake = Stream.runForEachArray(broker.appends, (deliveries) => Effect.uninterruptible(route(deliveries)))
    yield* Effect.raceFirst(intake, Fiber.join(working))
  }).pipe(Effect.scoped)
