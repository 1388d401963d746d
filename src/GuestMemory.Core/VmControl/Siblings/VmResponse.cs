namespace GuestMemory.Core.VmControl;

/// <summary>What became of a request that answers with error numbers (crosvm's <c>VmResponse</c>, as far as memory goes).</summary>
public abstract record VmResponse
{
    private VmResponse()
    {
    }

    /// <summary>It was done.</summary>
    public sealed record Ok : VmResponse
    {
        /// <summary>The one there is.</summary>
        public static Ok Instance { get; } = new();
    }

    /// <summary>Memory was registered.</summary>
    /// <param name="Slot">The VM's slot that it is in.</param>
    public sealed record RegisterMemory(uint Slot) : VmResponse;

    /// <summary>It failed.</summary>
    /// <param name="ErrorCode">The error number, see <see cref="Interop.Errno"/>.</param>
    public sealed record Err(int ErrorCode) : VmResponse;

    /// <summary>Does something on a VM that nobody else works on meanwhile; what fails becomes its error number.</summary>
    internal static VmResponse Of(VmMemoryContext context, Func<VmResponse> action)
    {
        ArgumentNullException.ThrowIfNull(context);
        lock (context.Lock)
        {
            try
            {
                return action();
            }
            catch (Interop.SyscallException exception)
            {
                return new Err(exception.ErrorCode);
            }
            catch (GuestMemoryException)
            {
                return new Err(Interop.Errno.EINVAL);
            }
            catch (ObjectDisposedException)
            {
                return new Err(Interop.Errno.EBADF);
            }
        }
    }
}
