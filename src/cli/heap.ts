/**
 * What a worker may hold at most, against the heap that it has. All that it holds is bounded, but in each place it takes the largest
 * message that the broker does, and some places there are for each shard.
 */
import { Effect, Schema } from "effect"
import { getHeapStatistics } from "node:v8"
import { Broker } from "../broker/Broker.ts"
import { intakeBytes, requestBytes, parkedConsumers, parkedShareBytes } from "../broker/intakeLimits.ts"
import * as limits from "../pipeline/limits.ts"

const mebibyte = 1024 ** 2

/** The program itself, and what a moment's work leaves to the collector. */
const programBytes = 64 * mebibyte

/** Bytes of a text for each of its bytes in the broker, if V8 needs two for each character. */
const perByte = 2

/** The heap that a worker with so many shards needs at a broker that takes messages of so many bytes, in bytes. */
export const heapNeeded = (shards: number, maxPayload: number): number => {
  const message = perByte * maxPayload
  // What was brought may not be taken before the next request is made.
  const intake = intakeBytes + perByte * requestBytes(intakeBytes, maxPayload)
  const parked = parkedConsumers(shards) * perByte * requestBytes(parkedShareBytes(shards), maxPayload)
  // Whoever holds nothing may take one, as it came and decoded.
  const lanes = limits.lanesBytes + shards * 2 * message
  const reads = limits.readsBytes + limits.readsWaitingBytes
  const refusals = 2 * (limits.refusalsBytesMax + message)
  return programBytes + 2 * intake + parked + lanes + limits.parkingBytes + reads + refusals
}

/** A worker could run out of memory, at some mix of messages and outages. */
export class HeapTooSmall extends Schema.TaggedError<HeapTooSmall>()("HeapTooSmall", {
  shards: Schema.Int,
  maxPayload: Schema.Int,
  needed: Schema.Int,
  available: Schema.Int,
}) {
  override get message(): string {
    const mebibytes = (bytes: number) => Math.ceil(bytes / mebibyte)
    return `the heap of ${mebibytes(this.available)} MiB is too small for ${this.shards} shards and a max_payload of ${this.maxPayload} bytes: set NODE_OPTIONS=--max-old-space-size=${mebibytes(this.needed)}, or lower max_payload of the broker`
  }
}

/** What is missing, where something is. */
const missing = (shards: number, maxPayload: number): HeapTooSmall | undefined => {
  const needed = heapNeeded(shards, maxPayload)
  const available = getHeapStatistics().heap_size_limit
  return needed > available ? new HeapTooSmall({ shards, maxPayload, needed, available }) : undefined
}

/** Fails with what is missing; to be called with the broker connected, as it says what it takes. */
export const checkHeap = Effect.fnUntraced(function* (shards: number) {
  const found = missing(shards, (yield* Broker).maxPayload())
  if (found !== undefined) return yield* found
})

/** Says it where the broker takes larger messages than at the start: most mixes still fit, and the next start would be refused. */
export const watchHeap = Effect.fnUntraced(function* (shards: number): Effect.fn.Return<never, never, Broker> {
  const broker = yield* Broker
  let last = broker.maxPayload()
  return yield* Effect.suspend(() => {
    const maxPayload = broker.maxPayload()
    if (maxPayload === last) return Effect.void
    last = maxPayload
    const found = missing(shards, maxPayload)
    return found === undefined ? Effect.void : Effect.logError(found.message)
  }).pipe(Effect.delay("10 seconds"), Effect.forever)
})
