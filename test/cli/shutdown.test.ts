/** How long a process may take after a signal. The timers are the test's. */
import { afterEach, assert, beforeEach, describe, it, vi } from "@effect/vitest"
import { endInOwnTime, endInTime } from "../../src/cli/shutdown.ts"

describe("after a signal", () => {
  const exits: Array<unknown> = []
  const handlers = new Map<string, (signal: string) => void>()

  beforeEach(() => {
    vi.useFakeTimers()
    exits.length = 0
    vi.spyOn(process, "exit").mockImplementation(((code: unknown) => exits.push(code)) as never)
    vi.spyOn(process.stderr, "write").mockReturnValue(true)
    vi.spyOn(process, "on").mockImplementation(((name: string, handler: (signal: string) => void) =>
      handlers.set(name, handler)) as never)
  })
  afterEach(() => {
    vi.restoreAllMocks()
    vi.useRealTimers()
  })

  it("a process ends after ten seconds at most, and at once by a second one", () => {
    endInTime()
    handlers.get("SIGTERM")!("SIGTERM")
    vi.advanceTimersByTime(9_000)
    assert.deepStrictEqual(exits, [])
    vi.advanceTimersByTime(1_000)
    assert.deepStrictEqual(exits, [0])
    handlers.get("SIGINT")!("SIGINT")
    assert.deepStrictEqual(exits, [0, 130])
  })

  it("a command with a time of its own is left alone", () => {
    endInTime()
    endInOwnTime()
    handlers.get("SIGTERM")!("SIGTERM")
    handlers.get("SIGTERM")!("SIGTERM")
    vi.advanceTimersByTime(60_000)
    assert.deepStrictEqual(exits, [])
  })
})
