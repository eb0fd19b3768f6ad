/** How long a process may take after a signal. The timers are the test's. */
import { afterEach, assert, beforeEach, describe, it, vi } from "@effect/vitest"
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"

const main = fileURLToPath(new URL("../../src/objectlog.js", import.meta.url))

describe("after a signal", () => {
  const exits: Array<unknown> = []
  const handlers = new Map<string, (signal: string) => void>()

  let endInTime: () => void
  let endInOwnTime: () => void

  beforeEach(async () => {
    vi.useFakeTimers()
    // Of its own for each: it knows of signals that the process has had.
    vi.resetModules()
    ;({ endInOwnTime, endInTime } = await import("../../src/cli/shutdown.ts"))
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

  it("the same signal from the terminal and from npm is one", () => {
    endInTime()
    handlers.get("SIGINT")!("SIGINT")
    vi.advanceTimersByTime(5)
    handlers.get("SIGINT")!("SIGINT")
    assert.deepStrictEqual(exits, [])
    vi.advanceTimersByTime(1_000)
    handlers.get("SIGINT")!("SIGINT")
    assert.deepStrictEqual(exits, [130])
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

describe("a signal while the program is loaded", () => {
  /** Sends it when Node comes to the program's own code. */
  const preload = `import { registerHooks } from "node:module"
    registerHooks({ load(url, context, next) {
      if (url.endsWith("/src/main.ts")) process.kill(process.pid, "SIGTERM")
      return next(url, context)
    } })`
  const ended = (command: string) =>
    new Promise((resolve) => {
      const child = spawn(
        process.execPath,
        ["--import", `data:text/javascript,${encodeURIComponent(preload)}`, main, command],
        {
          stdio: "ignore",
          env: { PATH: process.env["PATH"], NATS_URL: "nats://127.0.0.1:1", POSTGRES_IPS: "127.0.0.1:1" },
        },
      )
      child.once("exit", (code, signal) => resolve(code ?? signal))
    })

  it("ends a service as it would later, and leaves a client command undone", async () => {
    assert.deepStrictEqual(await Promise.all([ended("worker"), ended("append")]), [0, "SIGTERM"])
  })
})
