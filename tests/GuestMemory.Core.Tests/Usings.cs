global using GuestMemory.Core;
global using GuestMemory.Core.Interop;

// Descriptors, threads and the pool of huge pages belong to the whole process.
[assembly: Xunit.v3.Parallelization(Mode = Xunit.Sdk.ParallelMode.None)]
