/**
 * What is deployed names things of the program: variables, flags, metrics, alerts. Nobody notices when one of them is
 * renamed here only, until the night when a panel is empty. So every name is looked up where it is defined.
 */
import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../", import.meta.url))
const read = (path: string): string => readFileSync(`${root}${path}`, "utf8")
const sources = (folder: string): string =>
  readdirSync(`${root}${folder}`, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))
    .map((file) => read(`${folder}/${file}`))
    .join("\n")

const found = (pattern: RegExp, text: string): ReadonlyArray<string> => [
  ...new Set([...text.matchAll(pattern)].map((match) => match[1]!)),
]

const dashboard: unknown = JSON.parse(read("deploy/grafana/dashboards/objectlog.json"))
const alerts = read("deploy/prometheus/alerts.yaml")

const record = (value: unknown): Readonly<Record<string, unknown>> => {
  assert(
    typeof value === "object" && value !== null && !Array.isArray(value),
    `expected an object, got ${typeof value}`,
  )
  return Object.fromEntries(Object.entries(value))
}

const list = (value: unknown): ReadonlyArray<Readonly<Record<string, unknown>>> => {
  assert(Array.isArray(value), `expected an array, got ${typeof value}`)
  return value.map(record)
}

/** The lines of a service in a compose file, without its comments. */
const service = (file: string, name: string): string => {
  const text = read(file).replaceAll(/^\s*#.*\n/gm, "")
  const block = new RegExp(`^  ${name}:\\n((?:    .*\\n|\\n)+)`, "m").exec(text)?.[1]
  assert(block !== undefined, `${file} has no service ${name}`)
  return block
}

/** Names of the variables that a service is given. */
const environment = (file: string, name: string): ReadonlyArray<string> => {
  const block = /^    environment:\n((?:      .*\n)+)/m.exec(service(file, name))?.[1]
  assert(block !== undefined, `${name} has no environment in ${file}`)
  return found(/^      ([A-Z_]+):/gm, block)
}

describe("dashboard and alerts", () => {
  const panels = list(record(dashboard)["panels"])
  const shown = panels.filter((panel) => panel["type"] !== "row")
  const expressions = shown.flatMap((panel) => list(panel["targets"]).map((target) => String(target["expr"])))

  it("every panel asks for something, and has an id and a place of its own", () => {
    assert.isAbove(shown.length, 10)
    assert.strictEqual(new Set(panels.map((panel) => panel["id"])).size, panels.length)
    for (const panel of shown) {
      assert.isNotEmpty(list(panel["targets"]), String(panel["title"]))
      const { x, w } = record(panel["gridPos"])
      assert.isAtMost(Number(x) + Number(w), 24, String(panel["title"]))
    }
    const places = panels.map((panel) => JSON.stringify(record(panel["gridPos"])))
    assert.strictEqual(new Set(places).size, panels.length)
  })

  it("every metric that they name exists", () => {
    const defined = sources("src/observe")
    const named = found(/\b(objectlog_[a-z_]+)/g, [...expressions, alerts.replaceAll(/^\s*#.*$/gm, "")].join("\n"))
    assert.isAbove(named.length, 15)
    const exists = (metric: string) =>
      new RegExp(`\\b${metric.slice("objectlog_".length)}: \\{|["\`]${metric}["\`]`).test(defined)
    const unknown = named.filter((metric) => !exists(metric.replace(/_(?:bucket|sum|count)$/, "")))
    assert.deepStrictEqual(unknown, [])
  })

  it("every alert is in the runbook, and no other one", () => {
    const names = found(/- alert: (\w+)/g, alerts)
    assert.isNotEmpty(names)
    assert.sameMembers([...found(/`(Objectlog[A-Z]\w+)`/g, read("README.md"))], [...names])
  })

  const promtool = (...argv: ReadonlyArray<string>) => {
    const run = spawnSync("promtool", argv, { cwd: root, encoding: "utf8", timeout: 30_000 })
    assert.strictEqual(run.status, 0, `promtool ${argv.join(" ")}: ${run.stdout}${run.stderr}`)
  }
  const absent = spawnSync("promtool", ["--version"]).error !== undefined

  // promtool: Debian package prometheus.
  it.skipIf(absent)("promtool accepts the rules and the scrape configuration", () =>
    promtool("check", "config", "deploy/prometheus/prometheus.yaml"),
  )

  it.skipIf(absent)("each alert fires on its fault, and none on a healthy service", () =>
    promtool("test", "rules", "test/deploy/alerts.yaml"),
  )
})

describe("compose files", () => {
  const files = [
    ["docker-compose.yaml", "worker"],
    ["docker-compose.test.yaml", "publisher"],
  ] as const

  it("give the program only variables that it knows", () => {
    const program = sources("src")
    // Read by the exporter of traces itself.
    const specified = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"]
    const known = (variable: string) =>
      specified.includes(variable) ||
      program.includes(`"${variable}"`) ||
      (variable.endsWith("_FILE") && program.includes(`secret("${variable.slice(0, -"_FILE".length)}"`))
    for (const [file, name] of files) {
      const given = environment(file, name)
      assert.includeMembers([...given], ["NATS_URL"])
      assert.deepStrictEqual(
        given.filter((variable) => !known(variable)),
        [],
        `${name} in ${file}`,
      )
    }
  })

  it("let every setting be set", () => {
    const inContainer = [
      "METRICS_HOST",
      "METRICS_PORT",
      "DATA_DIR",
      "NATS_SERVER",
      "POSTGRES_PORT",
      "POSTGRES_PASSWORD",
    ]
    const settings = found(
      /(?:given|parsed|secret|topic)\(\s*"([A-Z_]+)"/g,
      read("src/Config.ts").replaceAll(/,\s+/g, ", "),
    )
    assert.isAbove(settings.length, 10)
    const given = files.flatMap(([file, name]) => environment(file, name))
    assert.deepStrictEqual(
      settings.filter((variable) => !given.includes(variable) && !inContainer.includes(variable)),
      [],
    )
  })

  it("publish on the address that BIND_ADDRESS names, which is this machine's own by default", () => {
    const ports = files.flatMap(([file]) => found(/^    ports: \["(.*)"\]$/gm, read(file)))
    assert.isNotEmpty(ports)
    for (const port of ports) assert.match(port, /^\$\{BIND_ADDRESS:-127\.0\.0\.1\}:\$\{[A-Z]+_PORT:-\d+\}:\d+$/)
  })

  it("wait for every shard that they name", () => {
    const named = /POSTGRES_IPS: \$\{POSTGRES_IPS:-([a-z,-]+)\}/.exec(read("docker-compose.yaml"))?.[1]?.split(",")
    assert(named !== undefined)
    const worker = service("docker-compose.yaml", "worker")
    for (const shard of named) {
      assert.include(worker, `      ${shard}: { condition: service_healthy }`)
      assert.include(service("docker-compose.yaml", shard), `${shard}:/var/lib/postgresql`)
    }
  })
})

describe("image", () => {
  it("serves its metrics to the network that it is in", () => {
    assert.match(read("Dockerfile"), /^ENV .*\bMETRICS_HOST=0\.0\.0\.0$/m)
  })

  it("runs Node with the flags of npm start", () => {
    const flags = found(/(--max-[a-z-]+=\d+)/g, read("package.json"))
    assert.sameMembers([...found(/(--max-[a-z-]+=\d+)/g, read("Dockerfile"))], [...flags])
  })
})
