/** What processes cost, read from the kernel (Linux): CPU time, resident memory, and how often they woke up. */
import { Effect } from "effect"
import { readdir, readFile } from "node:fs/promises"

/** The kernel counts CPU time in ticks of this length, in microseconds. */
const tickMicros = 10_000

const read = (path: string) => readFile(path, "utf8").catch(() => "")

/** CPU time of one process and of its children that have ended, in microseconds. */
const ownCpu = async (pid: number): Promise<number> => {
  const stat = await read(`/proc/${pid}/stat`)
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  // utime, stime, cutime, cstime
  return [11, 12, 13, 14].reduce((sum, at) => sum + Number(fields[at] ?? 0), 0) * tickMicros
}

const treeCpu = async (pid: number): Promise<number> => {
  const children = (await read(`/proc/${pid}/task/${pid}/children`)).trim()
  const below = children === "" ? [] : await Promise.all(children.split(" ").map((child) => treeCpu(Number(child))))
  return below.reduce((sum, micros) => sum + micros, await ownCpu(pid))
}

/** CPU time so far of processes and all of their descendants, in microseconds. */
export const cpuMicros = (pids: ReadonlyArray<number>): Effect.Effect<number> =>
  Effect.promise(async () => (await Promise.all(pids.map(treeCpu))).reduce((sum, micros) => sum + micros, 0))

/** Resident memory in MiB: now, or at its highest. */
export const residentMemory = (pid: number, field: "VmRSS" | "VmHWM"): Effect.Effect<number> =>
  Effect.promise(async () => {
    const status = await read(`/proc/${pid}/status`)
    return Number(new RegExp(`${field}:\\s+(\\d+)`).exec(status)?.[1] ?? Number.NaN) / 1024
  })

/** How often the threads of a process went to sleep so far, which is how often they were woken. */
export const wakeUps = (pid: number): Effect.Effect<number> =>
  Effect.promise(async () => {
    const threads = await readdir(`/proc/${pid}/task`)
    const counts = await Promise.all(
      threads.map(async (thread) => {
        const status = await read(`/proc/${pid}/task/${thread}/status`)
        return Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)?.[1] ?? 0)
      }),
    )
    return counts.reduce((sum, count) => sum + count, 0)
  })
