import { describe } from "@effect/vitest"
import { Effect } from "effect"
import { layerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { brokerContract } from "./brokerContract.ts"

describe("Broker in memory", () => {
  brokerContract((test) =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      yield* test({
        publishAppend: (payload, headers) => Effect.asVoid(broker.publishAppend(payload, headers)),
        events: () => Effect.sync(() => broker.events().map(({ subject, payload }) => ({ subject, payload }))),
        traces: () =>
          Effect.sync(() =>
            broker.events().map(({ trace }) => [trace?.traceparent ?? "", trace?.tracestate ?? ""] as const),
          ),
        retry: broker.retry,
        deadLetters: () =>
          Effect.sync(() =>
            broker
              .deadLetters()
              .map(({ code, message, original }) => ({ payload: String(original.payload), code, reason: message })),
          ),
      })
    }).pipe(Effect.provide(layerMemory())),
  )
})
