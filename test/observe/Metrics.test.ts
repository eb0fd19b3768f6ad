import { assert, describe, it } from "@effect/vitest"
import { Effect, type Layer, Metric } from "effect"
import { layerMemory, Metrics, MetricsLive } from "../../src/observe/Metrics.ts"

const contract = (name: string, metrics: Layer.Layer<Metrics>) =>
  describe(name, () => {
    it.effect("counts each series for itself", () =>
      Effect.gen(function* () {
        const { count, value } = yield* Metrics
        yield* count("messages_total", { subject: "append", outcome: "ok" }, 3)
        yield* count("messages_total", { subject: "append", outcome: "ok" })
        yield* count("messages_total", { subject: "query", outcome: "ok" })
        assert.strictEqual(yield* value("messages_total", { subject: "append", outcome: "ok" }), 4)
        assert.strictEqual(yield* value("messages_total", { subject: "query", outcome: "ok" }), 1)
        assert.strictEqual(yield* value("messages_total", { subject: "query", outcome: "invalid_json" }), 0)
      }).pipe(Effect.provide(metrics), Effect.provideService(Metric.MetricRegistry, new Map())),
    )
  })

contract("MetricsLive", MetricsLive)
contract("Metrics in memory", layerMemory)
