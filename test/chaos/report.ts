/** A run as a table. */
import type { RunReport } from "./chaosRun.ts"
import type { Struck } from "./Storm.ts"

const seconds = (millis: number) => `${(millis / 1_000).toFixed(1)} s`

const quantile = (sorted: ReadonlyArray<number>, q: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN

/** Did another fault delay the same appends before all was normal again? Then it can't be told whose delay it was. */
const isAlone = (own: Struck, all: ReadonlyArray<Struck>): boolean =>
  own.recoveredAt !== undefined &&
  all.every(
    (other) =>
      other === own ||
      other.beganAt > own.recoveredAt! ||
      (other.recoveredAt ?? Infinity) < own.beganAt ||
      !other.shards.some((shard) => own.shards.includes(shard)),
  )

const faultRows = (struck: ReadonlyArray<Struck>): ReadonlyArray<string> => {
  const kinds = [...new Set(struck.map(({ kind }) => kind))].toSorted()
  return kinds.map((kind) => {
    const own = struck.filter((fault) => fault.kind === kind)
    const alone = own
      .filter((fault) => isAlone(fault, struck))
      .map((fault) => fault.recoveredAt! - fault.endedAt!)
      .toSorted((a, b) => a - b)
    const recovery = alone.length === 0 ? "–" : `${seconds(quantile(alone, 0.5))} / ${seconds(alone.at(-1)!)}`
    return `| ${kind} | ${own.length} | ${alone.length} | ${recovery} |`
  })
}

export const tableOf = (report: RunReport): string => {
  const { findings, ledger, struck } = report
  const delays = ledger.delays
    .flat()
    .map(({ millis }) => millis)
    .toSorted((a, b) => a - b)
  const overlapping = struck.filter((own) =>
    struck.some(
      (other) =>
        other !== own && other.beganAt < (own.endedAt ?? Infinity) && (other.endedAt ?? Infinity) > own.beganAt,
    ),
  )
  const rows: ReadonlyArray<readonly [string, string | number]> = [
    ["faults", `${struck.length}, of which ${overlapping.length} at the same time as another`],
    ["appends confirmed by the broker", ledger.confirmed],
    ["appends without confirmation", ledger.unknown],
    ["messages stored by the broker", ledger.stored],
    ["entries", findings.entries],
    ["events, repeated ones not counted", findings.events],
    ["dead letters", report.deadLetters],
    ["reads answered / given up during outages", `${report.reads.answered} / ${report.reads.unanswered}`],
    ["lost", findings.lost],
    ["duplicated", findings.duplicated],
    ["reordered", findings.reordered],
    ["other violations", findings.other],
    [
      "delay from confirmation to event, p50 / p99 / longest",
      `${quantile(delays, 0.5)} ms / ${seconds(quantile(delays, 0.99))} / ${seconds(ledger.longestDelayMillis)}`,
    ],
    ["longest stall: no event at all although an append waits", seconds(report.longestStallMillis)],
    ["all answered after the last fault", seconds(report.drainedAfterMillis)],
  ]
  return [
    "| fault | struck | alone | normal again when alone, median / longest |",
    "| --- | --- | --- | --- |",
    ...faultRows(struck),
    "",
    "| what | measured |",
    "| --- | --- |",
    ...rows.map(([what, measured]) => `| ${what} | ${measured} |`),
    ...(report.skipped === undefined ? [] : ["", report.skipped]),
  ].join("\n")
}
