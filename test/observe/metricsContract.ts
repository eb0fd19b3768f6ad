/** What every Metrics must do; run on the live layer and on the in-memory one. */
import { assert, it } from "@effect/vitest"
import { Effect, Exit, type Layer, Metric, Scope } from "effect"
import { counters, histograms, retryReason } from "../../src/observe/definitions.ts"
import { Metrics } from "../../src/observe/Metrics.ts"

export const metricsContract = (metrics: Layer.Layer<Metrics>) => {
  const onMetrics = (name: string, test: Effect.Effect<void, never, Metrics | Scope.Scope>) =>
    it.effect(name, () => test.pipe(Effect.provide(metrics), Effect.provideService(Metric.MetricRegistry, new Map())))

  onMetrics(
    "counts each series for itself",
    Effect.gen(function* () {
      const { count, counter, value } = yield* Metrics
      const queries = counter("messages_total", { subject: "query", outcome: "ok" })
      assert.strictEqual(yield* value("messages_total", { subject: "query", outcome: "ok" }), 0)
      yield* count("messages_total", { subject: "append", outcome: "ok" }, 3)
      yield* count("messages_total", { subject: "append", outcome: "ok" })
      queries()
      assert.strictEqual(yield* value("messages_total", { subject: "append", outcome: "ok" }), 4)
      assert.strictEqual(yield* value("messages_total", { outcome: "ok", subject: "query" }), 1)
      assert.strictEqual(yield* value("messages_total", { subject: "query", outcome: "invalid_json" }), 0)
    }),
  )

  onMetrics(
    "keeps shards apart, whatever they are called",
    Effect.gen(function* () {
      const { count, value } = yield* Metrics
      yield* count("pages_sent_total", { shard: `a"b\\` })
      yield* count("pages_sent_total", { shard: "db1:5432" }, 2)
      assert.strictEqual(yield* value("pages_sent_total", { shard: `a"b\\` }), 1)
      assert.strictEqual(yield* value("pages_sent_total", { shard: "db1:5432" }), 2)
      assert.strictEqual(yield* value("entries_read_total", { shard: "db1:5432" }), 0)
    }),
  )

  onMetrics(
    "a value at a bound is in its bucket, one above all bounds is only in the count",
    Effect.gen(function* () {
      const { distribution, observer } = yield* Metrics
      const shard = "a"
      for (const entries of [1, 2, 3, 500, 501]) observer("append_batch_entries", { shard })(entries)
      const { buckets, count, sum } = yield* distribution("append_batch_entries", { shard })
      const expected = new Map<number, number>([
        [1, 1],
        [2, 2],
        [5, 3],
        [400, 3],
        [500, 4],
      ])
      for (const [bound, below] of buckets) if (expected.has(bound)) assert.strictEqual(below, expected.get(bound))
      assert.strictEqual(buckets.length, histograms.append_batch_entries.bounds.length)
      assert.strictEqual(count, 5)
      assert.strictEqual(sum, 1007)
      assert.strictEqual((yield* distribution("append_batch_entries", { shard: "b" })).count, 0)
    }),
  )

  onMetrics(
    "a gauge is read when it is asked for, and gone with its scope",
    Effect.gen(function* () {
      const { gauge, reading } = yield* Metrics
      const scope = yield* Scope.make()
      let entries = 1
      yield* Scope.provide(
        gauge("lane_entries", { shard: "a" }, () => entries),
        scope,
      )
      assert.strictEqual(yield* reading("lane_entries", { shard: "a" }), 1)
      entries = 7
      assert.strictEqual(yield* reading("lane_entries", { shard: "a" }), 7)
      // Another worker in the same process takes it over: the first one's end does not take it away.
      yield* gauge("lane_entries", { shard: "a" }, () => 9)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(yield* reading("lane_entries", { shard: "a" }), 9)
      assert.isNaN(yield* reading("lane_entries", { shard: "b" }))
    }),
  )
}

/** Labels whose values come from outside would make series without end. */
export const boundedLabels = () =>
  it("a reason that nobody foresaw is counted as other", () => {
    assert.strictEqual(retryReason("57P01"), "57P01")
    assert.strictEqual(retryReason("connection"), "connection")
    for (const reason of ["P0001", "ZZ999", "", "disk 3 replaced"]) assert.strictEqual(retryReason(reason), "other")
    for (const { labels } of Object.values(counters)) assert.notProperty(labels, "id")
  })
