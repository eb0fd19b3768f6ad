/** What a run has seen so far, as numbers, and the two ways to print them. */
import { Histogram } from "./Histogram.ts"
import type { Violation, ViolationKind } from "./Violation.ts"

export interface Counts {
  /** Due by the schedule so far. */
  offered: number
  sent: number
  /** Acknowledged by the broker. */
  stored: number
  answered: number
  verified: number
  /** Sent and not settled yet. */
  pending: number
  /** Sent again because no acknowledgement came. */
  sentAgain: number
  /** Entries of others among those read. */
  foreign: number
  /** Stored, and no event came. */
  unanswered: number
  lost: number
  duplicated: number
  reordered: number
}

export class Tally {
  readonly counts: Counts = {
    offered: 0,
    sent: 0,
    stored: 0,
    answered: 0,
    verified: 0,
    pending: 0,
    sentAgain: 0,
    foreign: 0,
    unanswered: 0,
    lost: 0,
    duplicated: 0,
    reordered: 0,
  }
  /** From the due time of an append to its event. */
  readonly latency = new Histogram()
  /** The same since the last line. */
  readonly recent = new Histogram()

  answered(latencyMillis: number): void {
    this.counts.answered += 1
    this.latency.record(latencyMillis)
    this.recent.record(latencyMillis)
  }

  violated(kind: ViolationKind): void {
    if (kind === "lost" || kind === "invisible" || kind === "gap") this.counts.lost += 1
    if (kind === "duplicated") this.counts.duplicated += 1
    if (kind === "reordered") this.counts.reordered += 1
  }
}

const millis = (value: number): number => Number(value.toPrecision(3))

const latencyFields = (latency: Histogram) => ({
  p50_ms: millis(latency.quantileMillis(0.5)),
  p99_ms: millis(latency.quantileMillis(0.99)),
  max_ms: millis(latency.maxMillis),
})

const countFields = ({ counts }: Tally) => {
  const { sentAgain, ...rest } = counts
  return { ...rest, sent_again: sentAgain }
}

/** A line of JSON about the run so far; latency is that since the last line. */
export const progressJson = (tally: Tally, phase: string, elapsedMillis: number): string =>
  JSON.stringify({
    type: "progress",
    phase,
    elapsed_s: millis(elapsedMillis / 1_000),
    ...countFields(tally),
    ...latencyFields(tally.recent),
  })

/** The last line of JSON; latency is that of the whole run. */
export const summaryJson = (
  tally: Tally,
  elapsedMillis: number,
  verdict: { readonly violation?: Violation; readonly failure?: string; readonly completelyRead: number },
): string =>
  JSON.stringify({
    type: "summary",
    verdict: verdict.violation !== undefined ? "violation" : verdict.failure !== undefined ? "unfinished" : "ok",
    ...(verdict.violation === undefined ? {} : { violation: verdict.violation.message }),
    ...(verdict.failure === undefined ? {} : { failure: verdict.failure }),
    elapsed_s: millis(elapsedMillis / 1_000),
    ...countFields(tally),
    completely_read: verdict.completelyRead,
    ...latencyFields(tally.latency),
  })

const number = (value: number): string => value.toLocaleString("en-US")

/** The same for a person, in one line. */
export const progressText = (tally: Tally, phase: string, elapsedMillis: number, latency: Histogram): string => {
  const { answered, duplicated, lost, reordered, sent, stored, verified } = tally.counts
  const { max_ms, p50_ms, p99_ms } = latencyFields(latency)
  return [
    `${(elapsedMillis / 1_000).toFixed(0)} s ${phase}`,
    `sent ${number(sent)}`,
    `stored ${number(stored)}`,
    `answered ${number(answered)}`,
    `verified ${number(verified)}`,
    `p50 ${p50_ms} ms, p99 ${p99_ms} ms, max ${max_ms} ms`,
    `lost ${lost}, duplicated ${duplicated}, reordered ${reordered}`,
  ].join("  ")
}
