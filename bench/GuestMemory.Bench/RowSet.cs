using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Bench;

/// <summary>A table of operations: what C calls each, and how ours are measured.</summary>
internal abstract class RowSet
{
    private long _allocated;
    private int _repetitions;

    /// <summary>The section of the page, and the name on the command line.</summary>
    public abstract string Name { get; }

    /// <summary>On what, for the page: "64 GiB in pages of 4 KiB".</summary>
    public abstract string Setup { get; }

    /// <summary>The rows, in the order in which <see cref="Measure"/> gives the figures.</summary>
    public abstract Row[] Rows { get; }

    /// <summary>What to ask the C program for, a run each.</summary>
    public abstract string[] Filters { get; }

    /// <summary>The C program of bench/baseline.</summary>
    public virtual string Program => "cbase";

    /// <summary>How much memory the C program is to use.</summary>
    public virtual string Mebibytes => "0";

    /// <summary>How often each body is repeated, in C and in ours, for the median.</summary>
    public virtual int Repetitions => 5;

    /// <summary>The CPUs that both run on, unless the command says otherwise.</summary>
    public virtual string Cpus => "0";

    /// <summary>How often everything runs before it counts: what runs first is compiled first, and again when it has run often.</summary>
    protected abstract int WarmUps { get; }

    /// <summary>What the page says of the bytes that all of ours allocated.</summary>
    public virtual string Remark(long allocated) => $"All of ours together allocated {allocated} bytes.";

    public int IndexOf(string row) => Array.FindIndex(Rows, each => each.Name == row);

    /// <summary>Answers every line of input with a line "ns ns ..., bytes", until the input ends.</summary>
    public int Run()
    {
        for (var round = 0; round < 4; round++)
        {
            for (var i = 0; i < WarmUps; i++) Figures(1);
            Thread.Sleep(300);
        }

        Console.WriteLine("ready");
        while (Console.In.ReadLine() is not null)
        {
            var times = Figures(Repetitions);
            Console.WriteLine(string.Join(' ', times.Select(time => time.ToString("R", CultureInfo.InvariantCulture)).Append($"{_allocated}")));
        }

        return 0;
    }

    /// <summary>One figure a row, for all the operations of its body.</summary>
    protected abstract double[] Measure();

    /// <summary>As cbase.c does it: one unmeasured repetition, then the median.</summary>
    protected double Time(Action? prepare, Action body, bool once = false)
    {
        var measured = new double[_repetitions];
        for (var i = -1; i < measured.Length; i++)
        {
            if (i < 0 || !once) prepare?.Invoke();
            var before = GC.GetAllocatedBytesForCurrentThread();
            var start = Stopwatch.GetTimestamp();
            body();
            var ticks = Stopwatch.GetTimestamp() - start;
            if (i < 0) continue;
            _allocated += GC.GetAllocatedBytesForCurrentThread() - before;
            measured[i] = ticks * (1e9 / Stopwatch.Frequency);
        }

        return BenchTools.Median(measured);
    }

    private double[] Figures(int repetitions)
    {
        _repetitions = repetitions;
        _allocated = 0;
        return [.. Measure().Zip(Rows, static (time, row) => time / row.Operations)];
    }

    /// <summary>A row of the table.</summary>
    /// <param name="Name">What it is.</param>
    /// <param name="Baseline">What the line of the C program contains; null where C has no such thing.</param>
    /// <param name="Target">What is to be reached, for the page.</param>
    /// <param name="Operations">How often the body does it.</param>
    /// <param name="Reference">The row of ours that stands in for C.</param>
    /// <param name="Tail">A percentile: what the rest of the machine does decides on it, and its spread makes nothing void.</param>
    public sealed record Row(string Name, string? Baseline, string Target, int Operations, string? Reference = null, bool Tail = false);
}
