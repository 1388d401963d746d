# The examples for monitoring, with a real Prometheus that scrapes a real handler.

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module (Join-Path $root tests Pester TestHelpers.psm1) -Force
    $examples = Join-Path $root examples monitoring

    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $lacking = if (-not (Get-Command prometheus, promtool -CommandType Application -ErrorAction Ignore)) {
        'needs prometheus and promtool: apt-get install prometheus'
    }
    $lackingForFaults = $lacking ? $lacking : $userfaultfd.Supported ? $null : "this host lacks userfaultfd: $($userfaultfd.Detail) $($userfaultfd.Remedy)"

    function Invoke-Promtool {
        $said = & promtool @args 2>&1 | Out-String
        $LASTEXITCODE | Should -Be 0 -Because $said
    }
}

Describe 'The rules' {
    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It 'are valid' {
        Invoke-Promtool check config (Join-Path $examples prometheus.yml)
    }

    It 'alert when they should, and not before' {
        Invoke-Promtool test rules (Join-Path $examples alerts.test.yml)
    }
}

Describe 'A Prometheus that scrapes a handler' {
    BeforeAll {
        if ($lackingForFaults) { return }
        $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-prometheus-').FullName
        [IO.File]::WriteAllBytes("$directory/vm.mem", [byte[]]::new(1MB))
        $handler = Start-UffdHandler "$directory/vm.sock" "$directory/vm.mem" -Strategy OnDemand -MetricsPort 0
        $region = New-MmapRegion -Size 1MB -GuestAddress 0
        Connect-UffdHandler -Memory $region -SocketPath $handler.SocketPath
        $null = Read-GuestMemory -Memory $region -Address 0 -Size 64KB -Raw
        $scraped = Invoke-RestMethod "http://127.0.0.1:$($handler.MetricsPort)/metrics"

        Copy-Item (Join-Path $examples alerts.yml) $directory
        $configuration = Get-Content -Raw (Join-Path $examples prometheus.yml)
        $configuration.Replace('127.0.0.1:9464', "127.0.0.1:$($handler.MetricsPort)").Replace('15s', '1s') | Set-Content "$directory/prometheus.yml"
        # A port that was free a moment ago.
        $probe = [Net.Sockets.TcpListener]::new([Net.IPAddress]::Loopback, 0)
        $probe.Start()
        $address = "127.0.0.1:$($probe.LocalEndpoint.Port)"
        $probe.Stop()
        $server = Start-Process prometheus -PassThru -RedirectStandardError "$directory/log" -RedirectStandardOutput "$directory/out" -ArgumentList @(
            "--config.file=$directory/prometheus.yml", "--storage.tsdb.path=$directory/data", "--web.listen-address=$address")

        function Invoke-Query([string] $Expression) {
            (Invoke-RestMethod "http://$address/api/v1/query" -Method Post -Body @{ query = $Expression }).data.result
        }
        Wait-Until {
            try { (Invoke-Query 'guestmemory_uffd_vms').Count -eq 1 } catch [Net.Http.HttpRequestException], [InvalidOperationException] { $false }
        }
        $dashboard = Get-Content -Raw (Join-Path $examples dashboard.json) | ConvertFrom-Json
    }

    AfterAll {
        if ($lackingForFaults) { return }
        Stop-Process $server
        $server.WaitForExit()
        Remove-MmapRegion $region -Force
        Stop-UffdHandler $handler
        Remove-Item $directory -Recurse -Force
        Clear-TestState
    }

    BeforeEach {
        if ($lackingForFaults) { Set-ItResult -Skipped -Because $lackingForFaults }
    }

    It 'reads what the handler says' {
        (Invoke-Query 'up{job="guestmemory"}').value[1] | Should -Be 1
        (Invoke-Query 'sum(guestmemory_uffd_faults_total)').value[1] | Should -Be 16
        (Invoke-Query 'guestmemory_uffd_latency_seconds_count').value[1] | Should -Be 16
        (Invoke-Query 'histogram_quantile(0.99, guestmemory_uffd_latency_seconds_bucket) > 0') | Should -HaveCount 1
    }

    It 'finds nothing to object to in the metrics' {
        # It reads Prometheus's own text, where the description of a counter has the whole name.
        $counters = [regex]::Matches($scraped, '(?m)^# TYPE (\S+) counter$').ForEach{ $_.Groups[1].Value } -join '|'
        $scraped -replace "(?m)^(# \w+ (?:$counters)) ", '${1}_total ' | & promtool check metrics 2>&1 | Should -BeNullOrEmpty
    }

    It 'has every metric that the rules and the dashboard name' {
        $texts = (Join-Path $examples alerts.yml), (Join-Path $examples dashboard.json) | ForEach-Object { Get-Content -Raw $_ }
        $names = [regex]::Matches($texts, 'guestmemory_uffd_[a-z_]+').Value | Sort-Object -Unique
        $names.Count | Should -BeGreaterThan 5
        foreach ($name in $names) {
            $scraped | Should -Match "(?m)^$name\{" -Because $name
        }
    }

    It 'answers every expression of the dashboard' {
        foreach ($expression in $dashboard.panels.targets.expr) {
            $filled = $expression.Replace('$__rate_interval', '5m').Replace('$__range', '1h').Replace('$instance', '.*').Replace('$socket', '.*')
            { Invoke-Query $filled } | Should -Not -Throw -Because $filled
        }
        $dashboard.panels.id | Should -Be (1..$dashboard.panels.Count)
    }

    It 'evaluates every rule' {
        Wait-Until {
            $rules = (Invoke-RestMethod "http://$address/api/v1/rules").data.groups.rules
            @($rules).Count -eq 5 -and -not ($rules.health -ne 'ok')
        }
    }
}
