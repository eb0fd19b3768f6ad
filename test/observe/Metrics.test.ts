import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Metric } from "effect"
import { PrometheusMetrics } from "effect/observability"
import { readFileSync } from "node:fs"
import { counters, gauges, histograms } from "../../src/observe/definitions.ts"
import { layerMemory, Metrics, MetricsLive } from "../../src/observe/Metrics.ts"
import { boundedLabels, metricsContract } from "./metricsContract.ts"

const shards = ["a", "b"]

describe("Metrics in memory", () => metricsContract(layerMemory))

describe("MetricsLive", () => {
  metricsContract(MetricsLive(shards))
  boundedLabels()

  it.effect("shows everything that can be foreseen from the start, and nothing when it is gone", () =>
    Effect.gen(function* () {
      const text = yield* PrometheusMetrics.format().pipe(Effect.provide(MetricsLive(shards)))
      assert.include(text, `objectlog_messages_total{subject="query",outcome="invalid_cursor"} 0`)
      assert.include(text, `objectlog_append_transaction_seconds_bucket{shard="b",le="+Inf"} 0`)
      assert.include(text, `objectlog_append_delay_seconds_sum 0`)
      assert.strictEqual(yield* PrometheusMetrics.format(), "")
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())),
  )

  it.effect("writes numbers, histograms and names as Prometheus reads them", () =>
    Effect.gen(function* () {
      const { count, gauge, observer } = yield* Metrics
      yield* count("retries_total", { part: "dead letter", reason: "57P01" }, 2)
      yield* gauge("consumer_pending", { subject: "append" }, () => Number.NaN)
      yield* gauge("shard_up", { shard: `a"\\\n` }, () => 1)
      for (const seconds of [0.002, 0.004, 4_000]) observer("append_delay_seconds", {})(seconds)
      const lines = (yield* PrometheusMetrics.format()).split("\n")
      for (const line of [
        `objectlog_retries_total{part="dead letter",reason="57P01"} 2`,
        `objectlog_consumer_pending{subject="append"} NaN`,
        String.raw`objectlog_shard_up{shard="a\"\\\n"} 1`,
        `# TYPE objectlog_append_delay_seconds histogram`,
        `objectlog_append_delay_seconds_bucket{le="0.001"} 0`,
        `objectlog_append_delay_seconds_bucket{le="0.0025"} 1`,
        `objectlog_append_delay_seconds_bucket{le="1800"} 2`,
        `objectlog_append_delay_seconds_bucket{le="+Inf"} 3`,
        `objectlog_append_delay_seconds_sum 4000.006`,
        `objectlog_append_delay_seconds_count 3`,
      ])
        assert.include(lines, line)
    }).pipe(
      Effect.scoped,
      Effect.provide(MetricsLive(["a"]).pipe(Layer.fresh)),
      Effect.provideService(Metric.MetricRegistry, new Map()),
    ),
  )
})

it("docs/metrics.md has every metric with its type and its labels", () => {
  const text = readFileSync(new URL("../../docs/metrics.md", import.meta.url), "utf8")
  const documented = new Map(
    Array.from(text.matchAll(/^\| `objectlog_(\w+)` +\| (\w+) +\| ([^|]*)\|/gm), ([, name, type, labels]) => [
      name!,
      { type, labels: Array.from(labels!.matchAll(/`(\w+)`/g), (match) => match[1]) },
    ]),
  )
  for (const [type, definitions] of [
    ["counter", counters],
    ["gauge", gauges],
    ["histogram", histograms],
  ] as const) {
    for (const [name, { labels }] of Object.entries(definitions)) {
      assert.deepStrictEqual(documented.get(name), { type, labels: Object.keys(labels) }, name)
      documented.delete(name)
    }
  }
  assert.sameMembers([...documented.keys()], ["event_loop_delay_seconds", "build_info"])
})
