namespace GuestMemory.Core.Userfault;

/// <summary>A part of the image that a fault waits for. Its state belongs to the VM's service while it is free or done, else to the <see cref="UffdFetchers"/>.</summary>
internal sealed class UffdFetch
{
    public enum Step
    {
        Free,
        Waiting,
        UnderWay,
        Done,
    }

    private volatile Step _state;

    public Step State
    {
        get => _state;
        set => _state = value;
    }

    public ulong Offset { get; set; }

    public ulong Length { get; set; }
}
